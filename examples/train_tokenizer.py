"""Trains a small tokenizer on images, then encodes images to bits and decodes them again.

    python examples/train_tokenizer.py                # on the embedded emoji
    python examples/train_tokenizer.py --images DIR   # on the images in a folder and below it

The run folder gets the checkpoints, the finished tokenizer and, in `evaluation`, originals and
reconstructions after 1 to K scales. A few minutes on two CPU cores. The released sizes and
their recipes: docs/tokenizer.md.
"""

import argparse
import pathlib
import runpy

from infinity_jax.main import train
from infinity_jax.runtime.compile_cache import use_compile_cache
from infinity_jax.tools.evaluation.tokenizer import evaluate_tokenizer

REPOSITORY = pathlib.Path(__file__).parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description='Trains a small tokenizer.')
    parser.add_argument('--images', help='folder of images, without captions; default: emoji')
    parser.add_argument('--bits', type=int, default=32, help='bits per code (d)')
    parser.add_argument('--steps', type=int, default=300)
    parser.add_argument('--run-dir', default='runs/tokenizer_example')
    args = parser.parse_args()

    variant = 'demo' if args.images is None else 'images'
    config = runpy.run_path(str(REPOSITORY / 'configs' / 'tokenizer.py'))['get_config'](variant)
    if args.images is not None:
        config.data.sources = ({'kind': 'folder', 'path': args.images},)
    config.run_dir = args.run_dir
    config.tokenizer.bits = args.bits
    config.steps = args.steps
    config.optimizer.warmup_steps = 50
    config.optimizer.ema_decay = 0.98  # a window of 50 steps
    config.log_every, config.eval_every, config.eval_batches = 20, 100, 4
    use_compile_cache()
    train(config)

    images = {} if args.images is None else {'data': args.images}
    evaluate_tokenizer(args.run_dir, count=64, **images)


if __name__ == '__main__':
    main()
