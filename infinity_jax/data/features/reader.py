"""The source that reads stored features: outputs of the frozen networks for images and captions.

A folder holds `features.json`, a `FeatureInfo`, and shards in ArrayRecord format. A shard has, for
each image, a record with its tokenizer features followed by JSON of its name and captions, and then
one record per caption with the caption's text features; so training reads a single caption. The
last record of a shard is the table of its images.
"""

import dataclasses
import functools
import json
import os
import pathlib
from typing import Any

import ml_dtypes  # noqa: F401  (adds bfloat16 to numpy)
import numpy as np

from infinity_jax.data.captions import RecordCaptions
from infinity_jax.data.config import SourceConfig
from infinity_jax.data.fields import parse_object
from infinity_jax.data.records import BrokenRecord, IndexTable, RecordLocation
from infinity_jax.errors import UserError
from infinity_jax.parsing import from_mapping
from infinity_jax.runtime.local_files import open_regular

INFO = 'features.json'
OPEN_SHARDS = 256  # files that a process keeps open
CAPTION_RULES = 2  # stored with captions; records without it are of the first version
# A row of a shard's table: position of the image's record in the file, height and width of the
# image as shown, its code grid, and the checksum of its name, which decides its split.
TABLE = np.dtype(
    [
        ('position', '<i8'), ('height', '<i4'), ('width', '<i4'), ('h', '<i4'), ('w', '<i4'),
        ('key', '<u4'),
    ]
)  # fmt: skip
REMEDY = 'run `infinity-jax data precompute` again, which continues where it stopped'


@dataclasses.dataclass(frozen=True)
class TextInfo:
    """Description of the text features of a folder."""

    encoder: str  # fingerprint of its weights and vocabulary
    length: int  # tokens that captions were cut to
    channels: int
    dtype: str
    captions: str  # 'all' that training may sample, or 'whole': long captions are never cut


@dataclasses.dataclass(frozen=True)
class Layout:
    """Data types and text shape of stored features; a batch has records of one layout."""

    dtype: str
    text_dtype: str
    text_length: int  # 0: no text features
    text_channels: int


@dataclasses.dataclass(frozen=True)
class FeatureInfo:
    """Description of the features of a folder and of how they were computed."""

    made_from: str  # digest of the records of their source
    records: int
    shards: int
    image_size: int
    ratios: tuple[str, ...]
    tokenizer: str  # fingerprint of its encoder
    stride: int  # pixels per code
    bits: int  # d, channels of the tokenizer features
    dtype: str
    text: TextInfo | None = None

    @property
    def layout(self) -> Layout:
        """The layout of the folder's records."""
        text = self.text or TextInfo('', 0, 0, '', '')
        return Layout(self.dtype, text.dtype, text.length, text.channels)


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureRecord:
    """A stored image: its tokenizer features (h, w, d) and its captions."""

    name: str
    features: np.ndarray
    captions: RecordCaptions
    _location: RecordLocation
    _source: 'FeatureSource'

    def text(self, caption: str) -> np.ndarray:
        """Reads the text features (T, E) of one of its captions."""
        info, number = self._source.info.text, self.captions.every().index(caption)
        content = self._source.content(self._location[0], self._location[1] + 1 + number)
        assert info is not None, 'the folder has no text features'
        return np.frombuffer(content, info.dtype).reshape(-1, info.channels)


@dataclasses.dataclass(frozen=True)
class FeatureSource:
    """A folder of features. A location is (shard, position, h, w)."""

    paths: tuple[pathlib.Path, ...]
    info: FeatureInfo

    @classmethod
    def open(cls, config: SourceConfig) -> 'FeatureSource':
        """Opens a folder; raises `UserError` if it has no features or misses shards."""
        folder = pathlib.Path(config.path).absolute()
        info = read_info(folder)
        if info is None:
            inside = ', '.join(sorted(path.parent.name for path in folder.glob(f'*/{INFO}')))
            hint = f'; name one of the folders in it: {inside}' if inside else f'; {REMEDY}'
            raise UserError(f'data source {config.path}: no {INFO} in there{hint}')
        paths = tuple(shard_path(folder, info, shard) for shard in range(info.shards))
        missing = [path.name for path in paths if not path.exists()]
        if missing:
            raise UserError(
                f'data source {config.path}: {len(missing)} of {info.shards} shards are missing, '
                f'the first {missing[0]}; {REMEDY}'
            )
        return cls(paths, info)

    @property
    def name(self) -> str:
        return f'features {self.paths[0].parent}'

    def files(self) -> tuple[pathlib.Path, ...]:
        return self.paths

    def table(self) -> IndexTable:
        """The table of an index; sizes are those of the original images."""
        tables = [self._table(shard) for shard in range(len(self.paths))]
        shards = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
        rows = np.concatenate(tables)
        locations = np.stack([shards, rows['position'], rows['h'], rows['w']], axis=1)
        sizes = np.stack([rows['height'], rows['width']], axis=1)
        return IndexTable(locations.astype(np.int64), sizes, rows['key'])

    def read(self, location: RecordLocation) -> FeatureRecord:
        """Reads the record at a location; raises `BrokenRecord`."""
        shard, position, h, w = location
        content = self.content(shard, position)
        shape = (h, w, self.info.bits)
        values = np.frombuffer(content, self.info.dtype, count=h * w * self.info.bits)
        fields = json.loads(content[values.nbytes :])
        name, rules = fields.pop('name'), fields.pop('caption_rules', 1)
        if rules == 1:  # what begins with `--` was left out; the text features follow its order
            fields['short'] = [text.partition('--')[0] for text in fields['short']]
            fields['long'] = fields['long'].partition('--')[0]
        captions = RecordCaptions(**{**fields, 'short': tuple(fields['short'])})
        return FeatureRecord(name, values.reshape(shape), captions, location, self)

    def record_name(self, location: RecordLocation) -> str:
        return f'{self.paths[location[0]].name} record {location[1]}'

    def content(self, shard: int, position: int) -> bytes:
        """The bytes of a record of a shard; position −1 is the last record."""
        path = self.paths[shard]
        try:
            reader = _reader(path)
            return reader.read([position % reader.num_records()])[0]
        except (RuntimeError, IndexError, ZeroDivisionError) as error:
            raise BrokenRecord(f'{path}: {error}') from None

    def _table(self, shard: int) -> np.ndarray:
        try:
            return np.frombuffer(self.content(shard, -1), TABLE)
        except (BrokenRecord, ValueError) as error:
            raise UserError(
                f'{self.paths[shard]} cannot be read: {error}; delete it and {REMEDY}'
            ) from None


def array_record_module() -> Any:
    """The module that reads and writes shards.

    Raises:
      UserError: it is not installed; it has no package for Windows and for Macs with Intel chips.
    """
    try:
        from array_record.python import array_record_module as module
    except ModuleNotFoundError:
        raise UserError(
            'stored features need the package array_record, which is made for Linux and Macs with '
            'Apple chips; train on the images themselves'
        ) from None
    return module


def shard_path(folder: pathlib.Path, info: FeatureInfo, shard: int) -> pathlib.Path:
    """Path of a shard of a folder."""
    return folder / f'{shard:05}-of-{info.shards:05}.array_record'


def read_info(folder: pathlib.Path) -> FeatureInfo | None:
    """Reads the description of a folder; None if it has none.

    Raises:
      UserError: the description is damaged or of another version.
    """
    path = folder / INFO
    if not os.path.lexists(path):
        return None
    with open_regular(path) as file:
        content = file.read()
    try:
        fields = parse_object(content)
    except BrokenRecord as error:
        raise UserError(f'{path}: {error}; delete the folder and {REMEDY}') from None
    return from_mapping(FeatureInfo, fields, stored=True)


@functools.lru_cache(maxsize=OPEN_SHARDS)
def _reader(path: pathlib.Path) -> Any:
    """An open shard, an `ArrayRecordReader`, which several threads may read."""
    ArrayRecordReader = array_record_module().ArrayRecordReader
    options = 'readahead_buffer_size:0,max_parallelism:0'  # records are read at random
    return ArrayRecordReader(str(path), options=options, file_reader_buffer_size=1 << 15)
