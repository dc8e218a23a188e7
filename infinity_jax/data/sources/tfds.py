"""TFDS data sets that are stored as ArrayRecord, read without TensorFlow."""

import dataclasses
import functools
import io
import operator
import pathlib
from collections.abc import Iterator
from typing import Any

from infinity_jax.data.captions import RecordCaptions
from infinity_jax.data.config import SourceConfig
from infinity_jax.data.passed_over import PassedOver
from infinity_jax.data.records import BrokenRecord, RawRecord, RecordLocation
from infinity_jax.errors import UserError, first_line


@dataclasses.dataclass(frozen=True)
class TfdsSource:
    """The examples of a split. A location is (example,).

    Attributes:
      path: folder of the data set, or the folder that holds `name`.
      dataset: 'NAME:VERSION', or ''.
      split: of the stored data set, for instance 'train[:90%]'.
      image_field: name of an image feature, at the top level.
      text_field: name of a text feature, or of a list of them to sample from; '/' separates the
        names of nested features; '': no captions are read.
    """

    path: str
    dataset: str
    split: str
    image_field: str
    text_field: str

    @classmethod
    def open(cls, config: SourceConfig) -> 'TfdsSource':
        path = str(pathlib.Path(config.path).absolute())
        image_field = config.image_field or 'image'
        source = cls(path, config.name, config.split, image_field, config.text_field)
        features = _builder(path, config.name).info.features
        fields = ((image_field, 'image_field'), (config.text_field, 'text_field'))
        for field, setting in fields:
            if field and field.split('/')[0] not in features:
                raise UserError(
                    f'{source.name} has no field {field!r}; set {setting} to one of '
                    f'{", ".join(features)}'
                )
        return source

    @property
    def name(self) -> str:
        return f'tfds {self.dataset or self.path} {self.split}'

    def files(self) -> tuple[pathlib.Path, ...]:
        builder = _builder(self.path, self.dataset)
        try:
            return tuple(map(pathlib.Path, builder.info.splits[self.split].filepaths))
        except (KeyError, ValueError):
            raise UserError(
                f'{self.name}: no such split; choose one of {", ".join(builder.info.splits)}'
            ) from None

    def locations(self, passed_over: PassedOver | None = None) -> Iterator[RecordLocation]:
        return ((i,) for i in range(len(self._examples())))

    def read(self, location: RecordLocation) -> RawRecord:
        try:
            example = self._examples()[location[0]]
        except RuntimeError as error:  # damaged bytes, a file cut off
            raise BrokenRecord(first_line(error)) from None
        image = functools.partial(io.BytesIO, example[self.image_field])
        if not self.text_field:
            return RawRecord(image, None)
        try:
            texts: Any = functools.reduce(operator.getitem, self.text_field.split('/'), example)
            texts = [texts] if isinstance(texts, bytes) else texts
            captions = RecordCaptions(tuple(text.decode() for text in texts))
        except (AttributeError, LookupError, TypeError, UnicodeDecodeError):
            raise BrokenRecord(f'{self.text_field} is not text') from None
        return RawRecord(image, captions)

    def record_name(self, location: RecordLocation) -> str:
        return f'{self.dataset or pathlib.Path(self.path).name} {self.split} example {location[0]}'

    def _examples(self) -> Any:
        return _examples(self.path, self.dataset, self.split, self.image_field)


@functools.lru_cache(maxsize=8)
def _builder(path: str, dataset: str) -> Any:
    import tensorflow_datasets as tfds  # takes a second, and only this source needs it

    try:
        if dataset:
            return tfds.builder(dataset, data_dir=path)
        return tfds.builder_from_directory(path)
    except Exception as error:  # of many kinds; each means that it is not there
        raise UserError(
            f'TFDS data set {dataset} in {path}: {first_line(error)}; name a folder that holds '
            'dataset_info.json, or its data_dir and name'
        ) from None


@functools.lru_cache(maxsize=8)
def _examples(path: str, dataset: str, split: str, image_field: str) -> Any:
    """Random access to the examples of a split, whose images stay encoded."""
    import tensorflow_datasets as tfds

    decoders = {image_field: tfds.decode.SkipDecoding()}
    try:
        return _builder(path, dataset).as_data_source(split, decoders=decoders)
    except Exception as error:
        raise UserError(
            f'TFDS data set {dataset} in {path}: {first_line(error)}; prepare it with '
            "file_format='array_record', which can be read at random"
        ) from None
