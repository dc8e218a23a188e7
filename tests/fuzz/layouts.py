"""Malformed imagefolders, sidecar files, Parquet and Arrow files, read as training reads them."""

import functools
import os
import pathlib
import random
import shutil
from collections.abc import Callable
from typing import Any

from fuzz.harness import Case
from fuzz.sources import Read, has_reports, read_source
from fuzz.values import ODD, changed, damaged, damaged_text, short
from helpers.data_folders import (
    arrow_folder,
    image_table,
    imagefolder_folder,
    parquet_folder,
    sidecar_folder,
)

MAKERS: dict[str, Callable[[pathlib.Path], pathlib.Path]] = {
    'imagefolder': imagefolder_folder, 'sidecar': sidecar_folder,
    'parquet': parquet_folder, 'arrow': arrow_folder,
}  # fmt: skip
TABLES = ('parquet', 'arrow')
TEXT_ENDINGS = ('.jsonl', '.csv', '.json', '.txt')
FILES = {
    'pipe': os.mkfifo, 'folder': os.mkdir, 'loop': lambda path: os.symlink(path, path),
    'device': lambda path: os.symlink('/dev/zero', path), 'nothing': lambda path: None,
}  # fmt: skip


class LayoutFuzzer:
    """Cases of the four kinds: one file, or one value of a table, is malformed."""

    def __init__(self, folder: pathlib.Path):
        self.folders = {kind: make(folder / kind) for kind, make in MAKERS.items()}
        self.good = {kind: _read(kind, place) for kind, place in self.folders.items()}

    def case(self, rng: random.Random, folder: pathlib.Path) -> Case:
        kind = rng.choice(list(MAKERS))
        place = folder / kind
        shutil.copytree(self.folders[kind], place, ignore=shutil.ignore_patterns('index'))
        by_value = kind in TABLES and rng.random() < 0.4
        name, path = (self._value if by_value else self._file)(rng, kind, place)
        label = f'{kind} {path.relative_to(place)}: {name}'
        judge = functools.partial(self._judge, kind, place, path, by_value)
        return Case(label, functools.partial(_read, kind, place), judge, has_reports)

    def _file(self, rng: random.Random, kind: str, place: pathlib.Path) -> tuple[str, pathlib.Path]:
        """Damages a file, or puts something else in its place."""
        path = rng.choice(sorted(p for p in place.rglob('*') if p.is_file()))
        lists = [p for p in place.rglob('metadata.*')]
        if lists and rng.random() < 0.5:  # most files are images
            path = rng.choice(sorted(lists))
        content = path.read_bytes()
        if rng.random() < 0.1:
            name = rng.choice(list(FILES))
            path.unlink()
            FILES[name](path)
            return name, path
        text = path.suffix in TEXT_ENDINGS
        name, content = (damaged_text if text else damaged)(rng, content)
        path.write_bytes(content)
        return name, path

    def _value(
        self, rng: random.Random, kind: str, place: pathlib.Path
    ) -> tuple[str, pathlib.Path]:
        """Writes a table with another column, or another value in all of its rows."""
        import pyarrow as pa
        import pyarrow.parquet

        rows = image_table(4, kind).to_pylist()
        field = rng.choice(('image', 'caption', 'caption', 'long_caption', 'status'))
        value = self._odd(rng, field, rows[0])
        for row in rows if rng.random() < 0.3 else rows[:1]:
            row[field] = value
        if field == 'status':
            for row in rows:
                row.setdefault('status', 'success')
                row['error_message'] = None
        try:
            table = pa.Table.from_pylist(rows)
        except (pa.ArrowException, ValueError, TypeError, OverflowError):
            # Values of one type in all rows.
            table = pa.table({field: [str(value).encode(errors='replace')] * len(rows)})
        if kind == 'parquet':
            path = place / 'train-00000-of-00002.parquet'
            try:
                pyarrow.parquet.write_table(table, path, row_group_size=3)
            except pa.ArrowException:  # a group without fields
                pyarrow.parquet.write_table(table.drop_columns([field]), path)
        else:
            path = place / 'train' / 'data-00000-of-00001.arrow'
            with pa.OSFile(str(path), 'wb') as file, pa.ipc.new_stream(file, table.schema) as out:
                out.write_table(table, max_chunksize=3)
        return f'{field} {short(value)}', path

    def _odd(self, rng: random.Random, field: str, row: dict[str, Any]) -> Any:
        if field != 'image':
            return changed(rng, row.get(field, 'a text'))
        image = row['image']['bytes']
        return rng.choice(
            (
                {'bytes': damaged(rng, image)[1], 'path': None}, {'bytes': None, 'path': None},
                {'bytes': b'', 'path': 'a.jpg'}, {'bytes': None, 'path': '/dev/zero'}, image,
                {'bytes': 'text', 'path': 'x'}, {'path': '../x\0.jpg'}, [image, image], [],
                {'bytes': image, 'path': 5}, rng.choice(ODD),
            )
        )  # fmt: skip

    def _judge(
        self, kind: str, place: pathlib.Path, path: pathlib.Path, by_value: bool, read: Read
    ) -> str:
        """Judges whether records of other files are as before, and no row of a table is lost."""
        unused = {*read.damaged, *(name for _, _, name in read.passed_over)}
        for name, record in self.good[kind].records.items():
            if not _comes_from(kind, place, name, path):
                if read.records.get(name) != record:
                    return f'{name} is another record: {read.records.get(name)!r:.80}'
            elif kind in TABLES and not by_value and path.name not in unused:
                if name not in {*read.records, *read.broken}:
                    return f'{name} is lost'
        if path.is_file() and path.suffix in ('.csv', '.txt'):
            # A record without its text file has the caption `x`, from its JSON.
            known = _letters(path.read_bytes().decode(errors='replace')) + ' x'
            for name, record in read.records.items():
                for caption in record.captions * _comes_from(kind, place, name, path):
                    if _letters(caption) not in known:
                        return f'{name} has the caption {caption!r:.80}'
        return ''


def _read(kind: str, place: pathlib.Path) -> Read:
    text_field = 'caption' if kind in TABLES else 'text'
    return read_source(kind, place, place.parent / f'{kind} index', text_field)


def _comes_from(kind: str, place: pathlib.Path, name: str, path: pathlib.Path) -> bool:
    """Whether the record of this name may depend on a file."""
    if kind == 'imagefolder':  # a list and its images
        return path.parent == (place / name).parent
    if kind == 'sidecar':
        return path.with_suffix('.jpg') == place / name
    # A name begins with that of the file; the description of an Arrow data set names its files.
    return path.name == name.split(' ')[0] or path.suffix == '.json'


def _letters(text: str) -> str:
    """A text without spaces and quotation marks."""
    return ''.join(text.split()).replace('"', '')
