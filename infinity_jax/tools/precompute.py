"""Computes the outputs of the frozen networks for a run's data once and stores them as features."""

import dataclasses
import itertools
import math
import os
import pathlib
from collections.abc import Callable, Iterator

import jax
import numpy as np
import tqdm

from infinity_jax.config import DTYPES, required
from infinity_jax.data.buckets import target_size
from infinity_jax.data.config import DataConfig
from infinity_jax.data.features.image_batches import (
    ImageBatch,
    ReadImages,
    WorkItem,
    read_images,
    usable_records,
    work_items,
)
from infinity_jax.data.features.reader import FeatureInfo, shard_path
from infinity_jax.data.features.writer import NewRecord, ShardWriter, claim_folder, digest
from infinity_jax.data.pipeline import CountBroken
from infinity_jax.data.stored_source import StoredSource, check_broken, open_stored
from infinity_jax.errors import UserError
from infinity_jax.sharding import make_mesh
from infinity_jax.tools.precompute_encode import Encoders
from infinity_jax.training.batches import located_data
from infinity_jax.training.transformer.config import T2IConfig, bucket_schedules
from infinity_jax.training.transformer.features import text_info, tokenizer_fingerprint
from infinity_jax.training.transformer.parts import load_parts
from infinity_jax.weights.model_folder import LoadedModel

CAPTIONS = ('all', 'whole', 'none')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Precompute:
    """Options of `precompute`; `''` takes the value that fits the run."""

    split: str = 'train'  # 'train': data.sources; 'held_out': data.held_out
    dtype: str = 'float32'  # of tokenizer features; their signs decide bits
    text: str = ''  # captions to encode: 'all' that can be sampled, 'whole' ones, 'none'
    text_dtype: str = ''  # of text features; '': that of its products
    shard_records: int = 1024  # images per file
    batch_per_device: int = 8

    def __post_init__(self):
        for name in ('shard_records', 'batch_per_device'):
            if getattr(self, name) < 1:
                flag = name.replace('_', '-')
                raise UserError(f'--{flag} is {getattr(self, name)}; wanted 1 or more')
        for name, choices in (
            ('dtype', DTYPES), ('text_dtype', ('', *DTYPES)), ('text', ('', *CAPTIONS)),
        ):  # fmt: skip
            if getattr(self, name) not in choices:
                flag = name.replace('_', '-')
                raise UserError(
                    f'--{flag} is {getattr(self, name)!r}; wanted one of '
                    f'{", ".join(filter(None, choices))}'
                )


def precompute(
    config: T2IConfig,
    out: str | os.PathLike,
    options: Precompute = Precompute(),
    *,
    process_index: int | None = None,
    process_count: int | None = None,
) -> list[pathlib.Path]:
    """Stores features of every record of a run's sources, in one folder per source.

    Each process writes its own shards and waits for no other. Existing shards are kept, so that an
    interrupted call can be continued.

    Args:
      config: the run that will train on the features.
      out: parent of the folders.
      options: what is stored.
      process_index, process_count: of this process and of all; by default those of JAX.

    Returns:
      the folders.

    Raises:
      UserError: a source cannot be stored, too many records are broken, or a folder holds other
        features.
    """
    process_index = jax.process_index() if process_index is None else process_index
    process_count = jax.process_count() if process_count is None else process_count
    data = located_data(config)
    configs = data.sources_of(options.split)
    for source in configs:
        if source.kind in ('emoji', 'features'):
            raise UserError(
                f'data source {source.kind} cannot be stored as features; name other data.sources '
                '(a run may read features and images together)'
            )
    loaded = load_parts(config)
    bucket_schedules(config, loaded.configs)  # refuses ratios that the tokenizer has no grids for
    common = _description(config, loaded, options)
    mesh = make_mesh(devices=jax.local_devices())
    batch_size = options.batch_per_device * mesh.size
    encoders = Encoders(loaded, mesh, batch_size, common.dtype, common.text)
    folders = []
    for i, source in enumerate(configs):
        stored = open_stored(source, data, options.split)
        check_broken(stored, source, data.max_broken_share)
        records = len(usable_records(stored.index))
        info = dataclasses.replace(
            common,
            made_from=digest(stored.source, stored.index),
            records=records,
            shards=math.ceil(records / options.shard_records),
        )
        folder = pathlib.Path(out) / f'{i}_{source.kind}'
        own = range(process_index, info.shards, process_count)
        missing = [shard for shard in own if not shard_path(folder, info, shard).exists()]
        claim_folder(folder, info)
        items = work_items(stored.index, info.ratios, options.shard_records, batch_size, missing)
        todo = sum(len(item.numbers) for item in items)
        total = sum(min(options.shard_records, records - s * options.shard_records) for s in own)
        with tqdm.tqdm(
            total=total,
            initial=total - todo,
            desc=folder.name,
            unit=' records',
            disable=None if process_index == 0 else True,
        ) as bar:
            whole = info.text is not None and info.text.captions == 'whole'
            batches = _encoded(_images(stored, items, data), encoders, whole)
            _write(batches, folder, info, bar)
        folders.append(folder)
    return folders


def _description(config: T2IConfig, loaded: LoadedModel, options: Precompute) -> FeatureInfo:
    """The fields of the description that all sources of a run share."""
    captions = options.text or ('none' if config.text.train else 'all')
    if captions != 'none' and config.text.train:
        raise UserError(
            f'--text is {captions}, but text.train is True, so its features change; store none'
        )
    tokenizer = required(loaded.configs.tokenizer, 'tokenizer')
    text_dtype = options.text_dtype or loaded.configs.text_products
    return FeatureInfo(
        made_from='',
        records=0,
        shards=0,
        image_size=config.data.image_size,
        ratios=config.data.bucket_names,
        tokenizer=tokenizer_fingerprint(loaded),
        stride=tokenizer.stride,
        bits=tokenizer.bits,
        dtype=options.dtype,
        text=None if captions == 'none' else text_info(loaded, text_dtype, captions),
    )


def _images(stored: StoredSource, items: list[WorkItem], data: DataConfig) -> Iterator[ImageBatch]:
    """Reads images ahead of their use; logs and counts broken records."""
    sizes = tuple(target_size(name, data.image_size) for name in data.bucket_names)
    count = CountBroken(data.max_broken_share, 'left out')
    iterator = read_images(items, ReadImages(stored, sizes), data.num_workers)
    try:
        for images in iterator:
            count(len(images.names), images.broken)
            yield images
    finally:
        iterator.close()


def _encoded(
    batches: Iterator[ImageBatch], encoders: Encoders, whole: bool
) -> Iterator[tuple[WorkItem, list[NewRecord]]]:
    """Yields each work item with its records.

    The devices compute one batch ahead of the one that is yielded, so that they do not wait while
    records are written.
    """
    previous = None
    for images in batches:
        captions = [c.uncut() if whole else c for c in images.captions]
        images = dataclasses.replace(images, captions=tuple(captions))
        started = (
            images,
            encoders.images(images.pixels),
            encoders.captions([text for c in captions for text in c.every()]),
        )
        if previous is not None:
            yield _records(*previous)
        previous = started
    if previous is not None:
        yield _records(*previous)


def _records(
    images: ImageBatch,
    wait_for_features: Callable[[], np.ndarray],
    wait_for_texts: Callable[[], list[np.ndarray]],
) -> tuple[WorkItem, list[NewRecord]]:
    features_Bhwd, texts, records = wait_for_features(), iter(wait_for_texts()), []
    rows = zip(
        images.numbers, images.names, images.sizes, features_Bhwd, images.captions,
        strict=True,
    )  # fmt: skip
    for number, name, size, features, captions in rows:
        if not np.isfinite(features.astype(np.float32)).all():
            raise UserError(
                f'{name}: its features are not finite in {features.dtype}; store them as float32, '
                'or repair the tokenizer'
            )
        own = tuple(itertools.islice(texts, len(captions.every())))
        records.append(NewRecord(number, name, size, features, captions, own))
    return images.item, records


def _write(
    batches: Iterator[tuple[WorkItem, list[NewRecord]]],
    folder: pathlib.Path,
    info: FeatureInfo,
    bar: tqdm.tqdm,
) -> None:
    for shard, of_shard in itertools.groupby(batches, key=lambda batch: batch[0].shard):
        writer = ShardWriter(shard_path(folder, info, shard))
        for item, records in of_shard:
            for record in records:
                writer.add(record)
            bar.update(len(item.numbers))
        writer.finish()
