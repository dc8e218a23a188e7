"""Reports on the data of a run before training: records, buckets, captions, reading speed."""

import contextlib
import os
import time
from typing import Any

import numpy as np

from infinity_jax.data.buckets import Bucket, Part, make_buckets
from infinity_jax.data.records import BrokenRecord
from infinity_jax.data.sources.emoji import EmojiSource
from infinity_jax.data.stored_source import StoredSource, open_stored
from infinity_jax.errors import UserError
from infinity_jax.images import contact_sheet, save_png
from infinity_jax.training.batches import first_batches, located_data, make_batches
from infinity_jax.training.config import RunConfig
from infinity_jax.training.transformer.config import T2IConfig
from infinity_jax.training.transformer.parts import run_tokenizer

CAPTIONS = 1000  # captions whose lengths are measured
MAX_LISTED = 50  # broken records per source
MAX_SHOWN = 40  # characters that the vocabulary lacks
ENLARGED = 2  # times along an edge
KEPT = 0.5  # share of an image's area


def inspect_data(config: RunConfig, *, count: int, out: str | os.PathLike) -> dict[str, Any]:
    """Prints sources, broken records, buckets and caption lengths; writes a contact sheet.

    Broken records are listed even if they are more than `data.max_broken_share`.

    Args:
      config: a run of any task.
      count: images on the contact sheet, the first ones that training would read.
      out: path of the contact sheet, a PNG file.

    Returns:
      the printed figures.

    Raises:
      UserError: the data cannot be read, or `out` cannot be written.
    """
    if count < 1:
        raise UserError(f'--count is {count}; wanted 1 or more images')
    data = located_data(config)
    report: dict[str, Any] = {}
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
    report |= _scaling(buckets)
    texts = _captions(buckets, data.short_captions, config.seed)
    report['words'] = _words(texts)
    if isinstance(config, T2IConfig):
        report |= _tokens(config, texts)
    report['shown'] = _contact_sheet(config, count, out)
    return report


def _source(stored: StoredSource | None) -> dict[str, Any]:
    if stored is None:
        print('emoji: rendered without end')
        return {'records': None, 'broken': [], 'damaged': [], 'passed_over': []}
    index = stored.index
    print(f'{stored.source.name}: {len(index)} records, {len(index.broken)} broken, '
          f'{int(stored.usable.sum())} of the train split')  # fmt: skip
    for name, reason in index.broken[:MAX_LISTED]:
        print(f'  {name}: {reason}')
    if len(index.broken) > MAX_LISTED:
        print(f'  … all in {index.folder / "broken.json"}')
    for file, reason, lost in index.damaged:
        print(f'  {file}: left out, with about {lost} records: {reason}')
    for reason, passed, first in index.passed_over:
        print(f'  {passed} passed over: {reason} (the first: {first})')
    return {
        'records': len(index),
        'broken': index.broken,
        'damaged': index.damaged,
        'passed_over': index.passed_over,
    }


def _bucket(bucket: Bucket) -> dict[str, Any]:
    counts = [None if part.records is None else len(part.records) for part in bucket.parts]
    total = 'endless' if None in counts else str(sum(count or 0 for count in counts))
    pixels = '{} x {}'.format(*bucket.size)
    print(f'{bucket.ratio:>8} {pixels:>12} {total:>12} {bucket.share:>8.1%}')
    return {'ratio': bucket.ratio, 'size': bucket.size, 'records': counts, 'share': bucket.share}


def _scaling(buckets: list[Bucket]) -> dict[str, int]:
    """Counts the images that are enlarged much, and those of which much is cut off."""
    scales, kept = [np.zeros(0)], [np.zeros(0)]
    for bucket in buckets:
        for part in bucket.parts:
            if isinstance(part.source, StoredSource):
                size_N2 = np.asarray(part.source.index.sizes)[part.records].astype(float)
                scale_N = (np.array(bucket.size) / size_N2).max(1)
                scales.append(scale_N)
                kept.append(np.prod(bucket.size) / (scale_N**2 * size_N2.prod(1)))
    scale_N, kept_N = np.concatenate(scales), np.concatenate(kept)
    enlarged, cut = scale_N > ENLARGED, kept_N < KEPT
    if enlarged.any():
        print(f'{enlarged.sum()} images are enlarged more than {ENLARGED} times, up to '
              f'{scale_N.max():.1f} times')  # fmt: skip
    if cut.any():
        print(f'{cut.sum()} images lose more than {1 - KEPT:.0%} of their area to the crop, up to '
              f'{1 - kept_N.min():.1%}')  # fmt: skip
    return {'enlarged': int(enlarged.sum()), 'cut': int(cut.sum())}


def _tokens(config: T2IConfig, texts: list[str]) -> dict[str, int]:
    """Counts the captions that the model reads only in part."""
    tokenizer, limit = run_tokenizer(config), config.transformer.text_length
    unknown = tokenizer.unknown_characters(texts, limit)
    characters = ''.join(dict.fromkeys(''.join(unknown)))
    cut = sum(count > limit for count in tokenizer.token_counts(texts, limit))
    of = f'of {len(texts)} captions'
    if characters:
        print(f'{sum(map(bool, unknown))} {of} hold characters that the vocabulary lacks, '
              f'{len(characters)} in all: {characters[:MAX_SHOWN]!r}')  # fmt: skip
    if cut:
        print(f'{cut} {of} are longer than the {limit} tokens that the model reads')
    return {'unknown': sum(map(bool, unknown)), 'too_long': cut}


def _captions(buckets: list[Bucket], short_captions: float, seed: int) -> list[str]:
    """Samples captions as training would, from parts by their shares; images are not read."""
    rng = np.random.default_rng(seed)
    texts: list[str] = []
    parts = [part for bucket in buckets for part in bucket.parts]
    for part in rng.choice(np.array(parts, object), CAPTIONS, p=[p.share for p in parts]):
        with contextlib.suppress(BrokenRecord):
            texts.append(_caption(part, short_captions, rng))
    return texts


def _caption(part: Part, short_captions: float, rng: np.random.Generator) -> str:
    if isinstance(part.source, EmojiSource):
        return part.source.caption(int(rng.integers(1 << 30)))
    assert part.records is not None
    location = part.source.index.locations[rng.choice(part.records)]
    record = part.source.source.read(tuple(location.tolist()))
    return '' if record.captions is None else record.captions.sample(rng, short_captions)


def _words(texts: list[str]) -> dict[str, float]:
    lengths = np.array([len(text.split()) for text in texts])
    percentiles = np.percentile(lengths, (0, 50, 95, 100)).tolist()
    words = dict(zip(('least', 'median', '95 %', 'most'), percentiles, strict=True))
    print('words in a caption: ' + ', '.join(f'{name} {n:.0f}' for name, n in words.items()))
    return words


def _contact_sheet(config: RunConfig, count: int, out: str | os.PathLike) -> int:
    images: list[np.ndarray] = []
    texts: list[str] = []
    batches = -(-count // config.batch_size)
    for batch in first_batches(config, 'train', batches):
        if batch.pixels_BYX3 is not None:  # stored features have no images to show
            images += [_squared(image) for image in batch.pixels_BYX3]
            texts += batch.captions or []
    if not images:
        print('no image among the first records, only features: no contact sheet')
        return 0
    save_png(out, contact_sheet(images[:count], texts[:count]))
    print(out)
    return len(images[:count])


def _squared(image_YX3: np.ndarray) -> np.ndarray:
    """Pads an image to a white square."""
    y, x = image_YX3.shape[:2]
    edge = max(y, x)
    square = np.full((edge, edge, 3), 255, np.uint8)
    top, left = (edge - y) // 2, (edge - x) // 2
    square[top : top + y, left : left + x] = image_YX3
    return square


def measure_speed(config: RunConfig, batches: int) -> dict[str, float]:
    """Reads batches as training would, and prints images per second and processor time per image.

    Captions are not tokenized; stored text features are read.

    Args:
      config: a run of any task; its `data.num_workers` is used.
      batches: number of batches that are timed, after the first.

    Returns:
      'rate' in images per second, and 'cpu' in seconds of processor time per image.
    """
    if batches < 1:
        raise UserError(f'--batches is {batches}; wanted 1 or more')
    iterator = make_batches(config, 'train')
    next(iterator)  # starts the workers and makes the index
    start, cpu = time.monotonic(), os.times()
    for _ in range(batches):
        next(iterator)
    seconds, end = time.monotonic() - start, os.times()
    iterator.close()
    images = batches * config.batch_size
    own = (end.user + end.system) - (cpu.user + cpu.system)
    speed = {'rate': images / seconds, 'cpu': own / images}
    print(f'{images} images in {seconds:.1f} s: {speed["rate"]:.0f} images/s')
    if not config.data.num_workers:
        print(f'{1000 * speed["cpu"]:.1f} ms of processor time per image')
    return speed
