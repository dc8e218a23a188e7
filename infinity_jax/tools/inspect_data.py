"""What a run's data looks like before it is trained on, and how fast it can be read."""

import contextlib
import os
import time
from typing import Any

import numpy as np

from infinity_jax.data.buckets import Bucket, Part, make_buckets, open_stored
from infinity_jax.data.records import BrokenRecord
from infinity_jax.emoji import captions as emoji_captions
from infinity_jax.emoji.source import EmojiSource
from infinity_jax.errors import UserError
from infinity_jax.images import contact_sheet, save_png
from infinity_jax.training.batches import first_batches, located_data, make_batches
from infinity_jax.training.config import RunConfig

CAPTIONS = 1000  # read for their lengths
NAMED = 50  # broken records that are listed


def inspect_data(config: RunConfig, *, count: int, out: str | os.PathLike) -> dict[str, Any]:
    """Prints sources, broken records, buckets and caption lengths; writes a contact sheet.

    Broken records are listed whatever `data.max_broken_share` says.

    Args:
      config: of a run of any task.
      count: images read, as the first steps of training would, and shown.
      out: PNG file of them.

    Returns:
      the printed figures.

    Raises:
      UserError: the data cannot be read, or `out` not be written.
    """
    if count < 1:
        raise UserError(f'--count is {count}; wanted 1 or more images')
    data, report = located_data(config), {}
    stored = [
        None if source.kind == 'emoji' else open_stored(source, data, 'train')
        for source in data.sources_of('train')
    ]
    report['sources'] = [_source(source) for source in stored]
    buckets = make_buckets(
        data, 'train', smallest=config.batch_size, seed=config.seed, stored=stored
    )
    print(f'{"ratio":>8} {"pixels":>12} {"records":>12} {"share":>8}')
    report['buckets'] = [_bucket(bucket) for bucket in buckets]
    report['words'] = _words(_captions(buckets, data.short_captions, config.seed))
    report['shown'] = _contact_sheet(config, count, out)
    return report


def _source(stored: Any) -> dict[str, Any]:
    if stored is None:
        print('emoji: drawn without end')
        return {'records': None, 'broken': []}
    index = stored.index
    print(f'{stored.source.name}: {len(index)} records, {len(index.broken)} broken, '
          f'{int(stored.usable.sum())} of the train split')  # fmt: skip
    for name, reason in index.broken[:NAMED]:
        print(f'  {name}: {reason}')
    if len(index.broken) > NAMED:
        print(f'  … all in {index.folder / "broken.json"}')
    return {'records': len(index), 'broken': index.broken}


def _bucket(bucket: Bucket) -> dict[str, Any]:
    counts = [None if part.records is None else len(part.records) for part in bucket.parts]
    total = 'endless' if None in counts else str(sum(counts))
    pixels = '{} x {}'.format(*bucket.size)
    print(f'{bucket.ratio:>8} {pixels:>12} {total:>12} {bucket.share:>8.1%}')
    return {'ratio': bucket.ratio, 'size': bucket.size, 'records': counts, 'share': bucket.share}


def _captions(buckets: list[Bucket], short_captions: float, seed: int) -> list[str]:
    """Captions as training would draw them, of parts by their shares; images are not read."""
    rng, texts = np.random.default_rng(seed), []
    parts = [part for bucket in buckets for part in bucket.parts]
    for part in rng.choice(np.array(parts, object), CAPTIONS, p=[p.share for p in parts]):
        with contextlib.suppress(BrokenRecord):
            texts.append(_caption(part, short_captions, rng))
    return texts


def _caption(part: Part, short_captions: float, rng: np.random.Generator) -> str:
    if isinstance(part.source, EmojiSource):
        return emoji_captions.caption(part.source.spec(int(rng.integers(1 << 30))))
    place = part.source.index.places[rng.choice(part.records)]
    record = part.source.source.read(tuple(place.tolist()))
    return '' if record.captions is None else record.captions.choose(rng, short_captions)


def _words(texts: list[str]) -> dict[str, float]:
    lengths = np.array([len(text.split()) for text in texts])
    found = dict(zip(('least', 'median', '95 %', 'most'),
                     np.percentile(lengths, (0, 50, 95, 100)).tolist(), strict=True))  # fmt: skip
    print('words in a caption: ' + ', '.join(f'{name} {n:.0f}' for name, n in found.items()))
    return found


def _contact_sheet(config: RunConfig, count: int, out: str | os.PathLike) -> int:
    images, texts = [], []
    batches = -(-count // config.batch_size)
    for batch in first_batches(config, 'train', batches):
        if 'pixels_BYX3' in batch:  # stored features have no images to show
            images += [_squared(image) for image in batch['pixels_BYX3']]
            texts += batch['captions']
    if not images:
        print('no image among the first records, only features: no contact sheet')
        return 0
    save_png(out, contact_sheet(images[:count], texts[:count]))
    print(out)
    return len(images[:count])


def _squared(image_YX3: np.ndarray) -> np.ndarray:
    """The image in the middle of a white square."""
    y, x = image_YX3.shape[:2]
    edge = max(y, x)
    square = np.full((edge, edge, 3), 255, np.uint8)
    top, left = (edge - y) // 2, (edge - x) // 2
    square[top : top + y, left : left + x] = image_YX3
    return square


def measure_speed(config: RunConfig, batches: int) -> dict[str, float]:
    """Reads batches as training would and prints images, or features, per second and their cost.

    Captions stay text; stored text features are read.

    Args:
      config: of a run of any task; its `data.num_workers` is used.
      batches: how many are timed, after the first.

    Returns:
      'rate' in images per second and 'cpu' in seconds per image, of all processes.
    """
    if batches < 1:
        raise UserError(f'--batches is {batches}; wanted 1 or more')
    iterator = make_batches(config, 'train')
    next(iterator)  # starts workers, makes the index
    start, cpu = time.monotonic(), os.times()
    for _ in range(batches):
        next(iterator)
    seconds, end = time.monotonic() - start, os.times()
    iterator.close()
    images = batches * config.batch_size
    own = (end.user + end.system) - (cpu.user + cpu.system)
    found = {'rate': images / seconds, 'cpu': own / images}
    print(f'{images} images in {seconds:.1f} s: {found["rate"]:.0f} images/s')
    if not config.data.num_workers:
        print(f'{1000 * found["cpu"]:.1f} ms of processor time an image')
    return found
