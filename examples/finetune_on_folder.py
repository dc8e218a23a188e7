"""Fine-tunes the shipped model on a folder of images with captions, then generates from it.

    python examples/finetune_on_folder.py                # makes a small folder of shapes first
    python examples/finetune_on_folder.py --images DIR   # your own folder

The folder holds images and one or more *.jsonl files. Each line describes one image:

    {"image_path": "0001.png", "text": "a red circle on a white background"}

The run folder gets the checkpoints, the logged losses and the finished model. A few minutes on
two CPU cores. For a larger model name its folder with --model, and see docs/presets.md.
"""

import argparse
import itertools
import json
import pathlib
import runpy

from PIL import Image, ImageDraw

from infinity_jax import InfinityPipeline
from infinity_jax.main import train
from infinity_jax.runtime.compile_cache import use_compile_cache

REPOSITORY = pathlib.Path(__file__).parent.parent
COLOURS = ('red', 'green', 'blue', 'orange', 'purple', 'black')
GROUNDS = ('white', 'yellow', 'pink')
SHAPES = {
    'circle': lambda draw, box, fill: draw.ellipse(box, fill=fill),
    'square': lambda draw, box, fill: draw.rectangle(box, fill=fill),
    'ring': lambda draw, box, fill: draw.ellipse(box, outline=fill, width=8),
}


def make_shapes(folder: pathlib.Path, size: int = 64) -> None:
    """Writes shapes as PNG files, and their captions as one JSONL file."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (shape, colour, ground, margin) in enumerate(
        itertools.product(SHAPES, COLOURS, GROUNDS, (8, 12, 16))
    ):
        image = Image.new('RGB', (size, size), ground)
        SHAPES[shape](ImageDraw.Draw(image), (margin, margin, size - margin, size - margin), colour)
        image.save(folder / f'{number:04}.png')
        caption = f'a {colour} {shape} on a {ground} background'
        lines.append(json.dumps({'image_path': f'{number:04}.png', 'text': caption}))
    (folder / 'captions.jsonl').write_text('\n'.join(lines) + '\n')


def main() -> None:
    parser = argparse.ArgumentParser(description='Fine-tunes a model on a folder of images.')
    parser.add_argument('--images', help='folder with images and *.jsonl; default: made here')
    parser.add_argument('--model', help='model folder to start from; default: the shipped demo')
    parser.add_argument('--steps', type=int, default=200)
    parser.add_argument('--run-dir', default='runs/finetune_example')
    parser.add_argument('--prompt', default='a red circle on a white background')
    args = parser.parse_args()
    if args.images is None:
        args.images = f'{args.run_dir}_images'
        make_shapes(pathlib.Path(args.images))

    config = runpy.run_path(str(REPOSITORY / 'configs' / 'finetune.py'))['get_config']()
    config.init_from = args.model or str(REPOSITORY / 'infinity_jax' / 'demo')
    config.run_dir = args.run_dir
    config.data.sources = ({'kind': 'jsonl', 'path': args.images},)
    config.data.held_out_share = 0.1  # of the records: evaluated, never trained on
    config.data.image_size = 64  # pixels; the demo generates squares of 64
    config.data.ratios = ('1.000',)
    config.data.num_workers = 0  # threads
    config.steps, config.batch_size = args.steps, 16
    config.accumulate_steps, config.remat = 1, 'none'  # the model is small: memory is no concern
    config.optimizer.learning_rate, config.optimizer.warmup_steps = 5e-4, 20
    config.optimizer.ema_decay = 0.98  # a window of 50 steps
    config.eval_every, config.eval_batches = 50, 1
    use_compile_cache()
    train(config)

    pipeline = InfinityPipeline.from_pretrained(f'{args.run_dir}/model')
    path = pathlib.Path(args.run_dir) / 'example.png'
    pipeline(args.prompt, seed=1).images[0].save(path)
    print(f'{path}: {args.prompt}')


if __name__ == '__main__':
    main()
