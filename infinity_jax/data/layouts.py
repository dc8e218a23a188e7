"""Recognises the layout of a folder of training data, and names the source that reads it."""

import contextlib
import functools
import itertools
import pathlib
import tarfile
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from infinity_jax.data.config import SourceConfig
from infinity_jax.data.features.reader import read_info
from infinity_jax.data.fields import CAPTION_FIELDS, IMAGE_FIELDS, parse_object
from infinity_jax.data.passed_over import PassedOver, is_hidden
from infinity_jax.data.records import BrokenRecord, DamagedFile
from infinity_jax.data.sources import arrow, imagefolder, jsonl, parquet, tables
from infinity_jax.data.sources.folder import files_below
from infinity_jax.data.sources.listed import csv_header
from infinity_jax.data.sources.members import IMAGE, JSON, TEXT, kind_of
from infinity_jax.errors import UserError
from infinity_jax.parsing import from_mapping

MAX_LOOKED_AT = 10_000  # files of a folder
_PEEKED = 30  # shards, and members of a shard
# Folders of an imagefolder that Hugging Face takes for splits.
_SPLITS = ('train', 'training', 'validation', 'valid', 'val', 'dev', 'test', 'testing', 'eval')
_FOLDERS = 20  # in a folder of unknown layout


class Guess(NamedTuple):
    """The layout of a folder.

    Attributes:
      what: the layout in words.
      source: the fields of a source that reads it; None if no source does.
      advice: what to do if no source reads it.
    """

    what: str
    source: dict[str, Any] | None
    advice: str = ''


def guess_layout(path: pathlib.Path) -> Guess | None:
    """The layout of a folder, or of the folder of a file; None for an unknown one."""
    folder = path if path.is_dir() else path.parent
    guess = _guess(folder)
    if guess is None and folder.is_dir():  # such as `data` in a copy of a hub repository
        inside = sorted(p for p in folder.iterdir() if p.is_dir() and not is_hidden(p.name))
        guess = next(filter(None, map(_guess, inside[:_FOLDERS])), None)
    return guess


def _guess(folder: pathlib.Path) -> Guess | None:
    for recognise in (
        _features, _arrow, _tfds, _tar, _imagefolder, _jsonl, _parquet, _images, _tfrecord, _links,
    ):  # fmt: skip
        try:
            guess = recognise(folder)
        # A `UserError` is a ValueError; an index is missing in an empty folder of splits.
        except (OSError, ValueError, LookupError, BrokenRecord, DamagedFile):
            continue
        if guess is not None:
            return guess
    return None


def _source(kind: str, folder: pathlib.Path, **fields: str) -> dict[str, Any]:
    """Fields of a source; those equal to `defaults` are left out."""
    defaults = {'image_field': _IMAGE_FIELDS.get(kind), 'text_field': 'text', 'split': 'train'}
    kept = {name: value for name, value in fields.items() if value != defaults[name]}
    return {'kind': kind, 'path': str(folder), **kept}


_IMAGE_FIELDS = {
    'arrow': tables.IMAGE_FIELD,
    'imagefolder': imagefolder.IMAGE_FIELD,
    'jsonl': jsonl.IMAGE_FIELD,
    'parquet': tables.IMAGE_FIELD,
    'tfds': 'image',
}


def _first_of(usual: Iterable[str], names: Iterable[str]) -> str:
    known = list(names)
    return next((name for name in usual if name in known), '')


def _features(folder: pathlib.Path) -> Guess | None:
    if read_info(folder) is None:
        return None
    return Guess('features of `data precompute`', _source('features', folder))


def _arrow(folder: pathlib.Path) -> Guess | None:
    what, split = 'Arrow files of the library `datasets`', 'train'
    if (folder / arrow.SPLITS).is_file():
        splits = sorted(path.parent.name for path in folder.glob(f'*/{arrow.STATE}'))
        split = 'train' if 'train' in splits else splits[0]
        what += f' with the splits {", ".join(splits)}'
    inside = arrow.split_folder(folder, split)
    paths = arrow.saved_files(inside) or tables.table_files(inside, arrow.ENDING, split)
    return _table('arrow', what, folder, arrow.read_batches(paths[0])[0], split)


def _parquet(folder: pathlib.Path) -> Guess | None:
    (path, *_) = tables.table_files(folder, parquet.ENDING, 'train')
    import pyarrow.parquet

    schema = pyarrow.parquet.read_schema(path)
    what = 'Parquet files of images'
    if {'status', 'error_message'} <= set(schema.names):
        what += ', as img2dataset writes them'
    return _table('parquet', what, folder, schema, 'train')


def _table(kind: str, what: str, folder: pathlib.Path, schema: Any, split: str) -> Guess | None:
    """A layout of columns, if one of them holds images."""
    import pyarrow

    types = dict(zip(schema.names, schema.types, strict=True))
    is_text = lambda t: pyarrow.types.is_string(t) or pyarrow.types.is_large_string(t)
    is_bytes = lambda t: pyarrow.types.is_binary(t) or pyarrow.types.is_large_binary(t)
    is_image = lambda t: (
        is_bytes(t) or (pyarrow.types.is_struct(t) and t.get_field_index('bytes') >= 0)
    )
    images = [name for name, of in types.items() if is_image(of)]
    images += [name for name, of in types.items() if name in IMAGE_FIELDS and is_text(of)]
    if not images:
        return None
    texts = [
        name
        for name, of in types.items()
        if name not in images and (is_text(of) or _lists(of) and is_text(of.value_type))
    ]
    text_field = _first_of(CAPTION_FIELDS, texts) or (texts[0] if len(texts) == 1 else '')
    if texts and not text_field:
        what += f', with texts in the columns {", ".join(texts)}'
    fields = {
        'image_field': _first_of(IMAGE_FIELDS, images) or images[0],
        'text_field': text_field,
        'split': split,
    }
    return Guess(what, _source(kind, folder, **fields))


def _lists(of: Any) -> bool:
    import pyarrow

    return pyarrow.types.is_list(of) or pyarrow.types.is_large_list(of)


def _tfds(folder: pathlib.Path) -> Guess | None:
    if not (folder / 'dataset_info.json').is_file() or not any(folder.glob('*.array_record*')):
        return None
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(folder))
    features = builder.info.features.items()
    images = [name for name, of in features if isinstance(of, tfds.features.Image)]
    texts = [name for name, of in features if isinstance(of, tfds.features.Text)]
    if not images:
        return None
    fields = {
        'image_field': _first_of(IMAGE_FIELDS, images) or images[0],
        'text_field': _first_of(CAPTION_FIELDS, texts) or (texts[0] if texts else ''),
        'split': 'train' if 'train' in builder.info.splits else next(iter(builder.info.splits)),
    }
    return Guess('a TFDS data set', _source('tfds', folder, **fields))


def _tar(folder: pathlib.Path) -> Guess | None:
    shards = sorted(path for path in folder.glob('*.tar') if not is_hidden(path.name))
    if not shards:
        return None
    kinds: dict[str | None, str] = {IMAGE: '', TEXT: ''}  # of damaged shards
    for path in shards[:_PEEKED]:
        with contextlib.suppress(tarfile.TarError):
            kinds = _kinds_in(path)
            break
    if IMAGE not in kinds:
        return None
    text_field = 'text' if TEXT in kinds else kinds.get(JSON, '')
    return Guess('tar shards (WebDataset)', _source('tar', folder, text_field=text_field))


def _kinds_in(path: pathlib.Path) -> dict[str | None, str]:
    """Kinds of the first members of a shard; that of JSON with the field of the captions."""
    kinds: dict[str | None, str] = {}
    with tarfile.open(path, 'r:') as shard:
        for member in itertools.islice(shard, _PEEKED):
            kind = kind_of(member.name)
            if kind == JSON and kind not in kinds:
                content = shard.extractfile(member)
                fields = parse_object(content.read()) if content else {}
                kinds[kind] = _first_of(CAPTION_FIELDS, fields)
            kinds.setdefault(kind, '')
    return kinds


def _imagefolder(folder: pathlib.Path) -> Guess | None:
    patterns = [pattern for name in imagefolder.LISTS for pattern in (name, f'*/{name}')]
    near = any(next(folder.glob(pattern), None) for pattern in patterns)  # quickly found
    lists = imagefolder.list_paths(folder) if near else []
    if not lists:
        return None
    names = csv_header(lists[0]) if lists[0].suffix == '.csv' else _names_in(lists[0])
    what = f"images with {lists[0].name} (Hugging Face's imagefolder)"
    splits = sorted({path.parent.name for path in lists if path.parent.name in _SPLITS})
    if len(splits) > 1:
        what += f' in {", ".join(splits)}, all of which are read; name the folder of one alone'
    return _listed('imagefolder', what, folder, names)


def _jsonl(folder: pathlib.Path) -> Guess | None:
    paths = sorted(path for path in folder.glob('*.jsonl') if not is_hidden(path.name))
    return _listed('jsonl', 'lists of JSON lines', folder, _names_in(paths[0])) if paths else None


def _listed(kind: str, what: str, folder: pathlib.Path, names: Iterable[str]) -> Guess | None:
    names = list(names)
    image_field = _first_of((_IMAGE_FIELDS[kind], *IMAGE_FIELDS), names)
    if not image_field:
        return None
    text_field = _first_of(CAPTION_FIELDS, names)
    return Guess(what, _source(kind, folder, image_field=image_field, text_field=text_field))


def _names_in(path: pathlib.Path) -> Mapping[str, Any]:
    """The fields of the first line of a file."""
    with path.open('rb') as file:
        return parse_object(next((line for line in file if line.strip()), b''))


def _images(folder: pathlib.Path) -> Guess | None:
    paths = (path for path in files_below(folder, PassedOver()) if not is_hidden(path.name))
    kinds: dict[str | None, dict[pathlib.Path, pathlib.Path]] = {}  # kind -> stem -> file
    for path in itertools.islice(paths, MAX_LOOKED_AT):
        kinds.setdefault(kind_of(path.name), {})[path.with_suffix('')] = path
    if IMAGE not in kinds:
        return None
    if kinds[IMAGE].keys() & kinds.get(TEXT, {}).keys():
        return Guess('images with a text file of the same name each', _source('sidecar', folder))
    fields = [path for stem, path in kinds.get(JSON, {}).items() if stem in kinds[IMAGE]]
    if fields:
        text_field = _first_of(CAPTION_FIELDS, parse_object(fields[0].read_bytes()))
        what = 'images with a JSON file of the same name each'
        return Guess(what, _source('sidecar', folder, text_field=text_field))
    return Guess('images without captions', _source('folder', folder))


def _tfrecord(folder: pathlib.Path) -> Guess | None:
    if not any(folder.glob('*.tfrecord*')):
        return None
    advice = 'they cannot be read at random: '
    if (folder / 'dataset_info.json').is_file():
        advice += "prepare the TFDS data set with file_format='array_record'"
    else:
        advice += 'write tar shards or Parquet instead (img2dataset: --output_format webdataset)'
    return Guess('TFRecord files', None, advice)


def _links(folder: pathlib.Path) -> Guess | None:
    names: list[str] = []
    for path in itertools.islice(folder.glob('*.parquet'), 1):
        import pyarrow.parquet

        names += pyarrow.parquet.read_schema(path).names
    for path in itertools.islice(folder.glob('*.jsonl'), 1):
        names += _names_in(path)
    if 'url' not in map(str.lower, names):
        return None
    advice = 'download the images first, for instance with img2dataset --output_format webdataset'
    return Guess('tables of links to images', None, advice)


@functools.cache
def hint(config: SourceConfig) -> str:
    """The end of a line about a source that cannot be read: the source that reads its folder.

    Returns:
      '' if the folder has no other layout that is known.
    """
    try:
        guess = guess_layout(pathlib.Path(config.path).absolute())
    except UserError:
        return ''
    if guess is None:
        return ''
    found = f'; found there: {guess.what}, '
    if guess.source is None:
        return found + guess.advice
    chosen = {name: getattr(config, name) for name in ('path', 'weight', 'split')}
    if from_mapping(SourceConfig, {**guess.source, **chosen}) == config:
        return ''
    return f'{found}read by {guess.source}'
