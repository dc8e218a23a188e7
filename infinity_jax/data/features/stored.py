"""Records whose images and captions went through the frozen networks once, kept in shards.

A folder holds `features.json`, which says what made it, and ArrayRecord files. One record of a file
is an image's tokenizer features followed by JSON of its name and captions; the text features of
each caption are a record of their own behind it, so that training reads one caption alone. The
last record of a file is the table of its images.
"""

import dataclasses
import functools
import json
import pathlib
from typing import Any

import ml_dtypes  # noqa: F401  (numpy then knows bfloat16)
import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from infinity_jax.config import from_mapping
from infinity_jax.data.captions import RecordCaptions
from infinity_jax.data.config import SourceConfig
from infinity_jax.data.records import BrokenRecord, RecordLocation
from infinity_jax.errors import UserError

INFO = 'features.json'
OPEN_SHARDS = 256  # of a process; a file each
# A row of a shard's table: where its image's record stands in the file, height and width of the
# image as shown, its code grid, and the checksum of its name, which tells its split.
TABLE = np.dtype(
    [
        ('position', '<i8'), ('height', '<i4'), ('width', '<i4'), ('h', '<i4'), ('w', '<i4'),
        ('key', '<u4'),
    ]
)  # fmt: skip
MEND = 'run `infinity-jax data precompute` again, which goes on where it stopped'


@dataclasses.dataclass(frozen=True)
class TextInfo:
    """The text features of a folder."""

    encoder: str  # fingerprint of its weights and vocabulary
    length: int  # tokens that captions were cut to
    channels: int
    dtype: str
    captions: str  # 'all' that training may draw, or 'whole': long ones are never cut


@dataclasses.dataclass(frozen=True)
class Layout:
    """What a batch of features holds; records of different layouts never share one."""

    dtype: str
    text_dtype: str
    text_length: int  # 0: no text features
    text_channels: int


@dataclasses.dataclass(frozen=True)
class FeatureInfo:
    """What made the features of a folder."""

    made_from: str  # digest of the source's records
    records: int
    shards: int
    image_size: int
    ratios: tuple[str, ...]
    tokenizer: str  # fingerprint of its encoder
    stride: int  # pixels per code
    bits: int  # d
    dtype: str
    text: TextInfo | None = None

    @property
    def layout(self) -> Layout:
        text = self.text or TextInfo('', 0, 0, '', '')
        return Layout(self.dtype, text.dtype, text.length, text.channels)


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureRecord:
    """A stored image: features (h, w, d), which share the memory that was read, and captions."""

    name: str
    features: np.ndarray
    captions: RecordCaptions
    _place: RecordLocation
    _source: 'FeatureSource'

    def text(self, caption: str) -> np.ndarray:
        """Text features (T, E) of one of its captions."""
        info, number = self._source.info.text, self.captions.every().index(caption)
        content = self._source.content(self._place[0], self._place[1] + 1 + number)
        return np.frombuffer(content, info.dtype).reshape(-1, info.channels)


@dataclasses.dataclass(frozen=True)
class FeatureSource:
    """A folder of features. A place is (shard, position, h, w)."""

    paths: tuple[pathlib.Path, ...]
    info: FeatureInfo

    @classmethod
    def open(cls, config: SourceConfig) -> 'FeatureSource':
        """Raises `UserError`: nothing is there, or it is not complete."""
        folder = pathlib.Path(config.path).absolute()
        info = read_info(folder)
        if info is None:
            inside = ', '.join(sorted(path.parent.name for path in folder.glob(f'*/{INFO}')))
            hint = f'; name one of the folders in it: {inside}' if inside else f'; {MEND}'
            raise UserError(f'data source {config.path}: no {INFO} in there{hint}')
        paths = tuple(shard_path(folder, info, shard) for shard in range(info.shards))
        missing = [path.name for path in paths if not path.exists()]
        if missing:
            raise UserError(
                f'data source {config.path}: {len(missing)} of {info.shards} shards are missing, '
                f'the first {missing[0]}; {MEND}'
            )
        return cls(paths, info)

    @property
    def name(self) -> str:
        return f'features {self.paths[0].parent}'

    def files(self) -> tuple[pathlib.Path, ...]:
        return self.paths

    def table(self) -> dict[str, np.ndarray]:
        """Columns of an index: places, sizes of the images themselves, and keys."""
        tables = [self._table(shard) for shard in range(len(self.paths))]
        shards = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
        rows = np.concatenate(tables)
        places = np.stack([shards, rows['position'], rows['h'], rows['w']], axis=1)
        sizes = np.stack([rows['height'], rows['width']], axis=1)
        return {'places': places.astype(np.int64), 'sizes': sizes, 'keys': rows['key']}

    def read(self, place: RecordLocation) -> FeatureRecord:
        """The record at a place; raises `BrokenRecord`."""
        shard, position, h, w = place
        content = self.content(shard, position)
        shape = (h, w, self.info.bits)
        values = np.frombuffer(content, self.info.dtype, count=h * w * self.info.bits)
        fields = json.loads(content[values.nbytes :])
        name = fields.pop('name')
        captions = RecordCaptions(**{**fields, 'short': tuple(fields['short'])})
        return FeatureRecord(name, values.reshape(shape), captions, place, self)

    def record_name(self, place: RecordLocation) -> str:
        return f'{self.paths[place[0]].name} record {place[1]}'

    def content(self, shard: int, position: int) -> bytes:
        """A record's bytes; −1 is the last of its shard."""
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
                f'{self.paths[shard]} cannot be read: {error}; delete it and {MEND}'
            ) from None


def shard_path(folder: pathlib.Path, info: FeatureInfo, shard: int) -> pathlib.Path:
    """Where a shard lies."""
    return folder / f'{shard:05}-of-{info.shards:05}.array_record'


def read_info(folder: pathlib.Path) -> FeatureInfo | None:
    """What made the features of a folder; None where nothing did.

    Raises:
      UserError: its description is damaged or of another version.
    """
    try:
        fields: Any = json.loads((folder / INFO).read_text(encoding='utf-8'))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f'{folder / INFO}: {error}; delete the folder and {MEND}') from None
    return from_mapping(FeatureInfo, fields, stored=True)


@functools.lru_cache(maxsize=OPEN_SHARDS)
def _reader(path: pathlib.Path) -> ArrayRecordReader:
    """An open shard; many threads may read from it."""
    options = 'readahead_buffer_size:0,max_parallelism:0'  # records are read at random
    return ArrayRecordReader(str(path), options=options, file_reader_buffer_size=1 << 15)
