"""Generates images with the model that ships with the package.

    python examples/generate.py --out runs/images

It writes one PNG file per image, and prints the file names. About 10 seconds on two CPU cores.
"""

import argparse
import pathlib

from infinity_jax import InfinityPipeline, SamplingConfig

PROMPTS = ('a red apple on a light blue background', 'a sailboat on an orange background')


def main() -> None:
    parser = argparse.ArgumentParser(description='Generates images from prompts.')
    parser.add_argument('prompts', nargs='*', default=PROMPTS, help='what the images show')
    parser.add_argument('--model', help='model folder, or org/name; default: the shipped demo')
    parser.add_argument('--num', type=int, default=2, help='images per prompt')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument(
        '--out', type=pathlib.Path, default=pathlib.Path('runs/images'), help='folder'
    )
    args = parser.parse_args()

    pipeline = InfinityPipeline.from_pretrained(*filter(None, [args.model]))
    # Guidance and temperature: one number, or one per scale. Changing them compiles nothing.
    sampling = SamplingConfig(guidance=3.0, temperature=0.5)
    result = pipeline(list(args.prompts), num=args.num, seed=args.seed, sampling=sampling)

    args.out.mkdir(parents=True, exist_ok=True)
    for number, (prompt, image) in enumerate(zip(result.prompts, result.images, strict=True)):
        path = args.out / f'{number:03}.png'
        image.save(path)
        print(f'{path}: {prompt}')


if __name__ == '__main__':
    main()
