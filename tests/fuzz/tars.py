"""Malformed tar shards, read as training reads them."""

import functools
import io
import json
import pathlib
import random
import tarfile
from collections.abc import Callable

from fuzz.harness import Case
from fuzz.sources import Read, has_reports, read_source
from fuzz.values import damaged, damaged_text
from helpers.data_folders import encoded

COUNT = 6
SHARD = '001.tar'
BLOCK = tarfile.BLOCKSIZE
KINDS = {
    'link': tarfile.SYMTYPE, 'hard link': tarfile.LNKTYPE, 'pipe': tarfile.FIFOTYPE,
    'device': tarfile.CHRTYPE, 'folder': tarfile.DIRTYPE, 'sparse': tarfile.GNUTYPE_SPARSE,
    'unknown type': b'Z', 'contiguous': tarfile.CONTTYPE, 'old file': tarfile.AREGTYPE,
}  # fmt: skip
NAMES = (
    '../0003.jpg', '/etc/0003.jpg', '.jpg', '', 'x' * 150 + '.jpg', 'ä' * 90 + '.jpg', '0003.JPG',
    '0003',
    'a/../0003.jpg', './0003.jpg', 'a\udcff.jpg', '0003.jpg.exe', '0001.jpg', 'C:\\0003.jpg',
    '0003.gz',
    '0003.mask.jpg', ' .jpg', '0003.jpg/', '\n.jpg', '__MACOSX/0003.jpg', '.0003.jpg', '0003.',
)  # fmt: skip
TEXTS = (
    b'', b'\0', b'\xff\xfe', b'\xef\xbb\xbfa caption', b' \n', b'-- x', '😀'.encode() * 50,
    b'x' * 2_000_000,
    b'a\r\nb', b'\xc3',
)  # fmt: skip


class TarFuzzer:
    """Cases of a data source of kind tar: one member or some bytes are malformed."""

    def __init__(self, folder: pathlib.Path):
        self.images = [encoded(24, 24, n, 'PNG' if n % 2 else 'JPEG') for n in range(COUNT)]
        with tarfile.open(folder / SHARD, 'w') as shard:
            for n in range(COUNT):
                self._add(shard, n)
        self.content = (folder / SHARD).read_bytes()
        self.members = tarfile.open(folder / SHARD).getmembers()
        self.good = read_source('tar', folder, folder / 'index')

    def case(self, rng: random.Random, folder: pathlib.Path) -> Case:
        maker = rng.choice((self._bytes, self._bytes, self._header, self._member, self._packed))
        name, content, judge = maker(rng)
        (folder / SHARD).write_bytes(content)
        if rng.random() < 0.5:  # next to a good shard, which does not excuse it
            (folder / '000.tar').write_bytes(self.content)
        run = functools.partial(read_source, 'tar', folder, folder / 'index')
        return Case(name, run, judge, has_reports)

    def _bytes(self, rng: random.Random) -> tuple[str, bytes, Callable[[Read], str]]:
        """Damage anywhere in the shard."""
        name, content = damaged(rng, self.content)
        return name, content, functools.partial(self._same_names, content)

    def _header(self, rng: random.Random) -> tuple[str, bytes, Callable[[Read], str]]:
        """A member's header with a field of other bytes and a right checksum."""
        member = rng.choice(self.members)
        header = bytearray(self.content[member.offset : member.offset + BLOCK])
        field, start, size = rng.choice(
            (
                ('name', 0, 100), ('mode', 100, 8), ('size', 124, 12), ('size', 124, 12),
                ('mtime', 136, 12), ('type', 156, 1), ('magic', 257, 8), ('prefix', 345, 155),
            )
        )  # fmt: skip
        value = rng.choice(
            (
                b'', b'\0' * size, b'7' * (size - 1) + b'\0',
                b'\x80' + b'\t'.rjust(size - 1, b'\0'),
                b'\xff' * size, b'-1', b'x', rng.randbytes(size), b'\x80' + b'\xff' * (size - 1),
            )
        )  # fmt: skip
        header[start : start + size] = value.ljust(size, b'\0')[:size]
        header[148:156] = b' ' * 8
        header[148:156] = b'%06o\0 ' % sum(header)
        content = self.content[: member.offset] + header + self.content[member.offset + BLOCK :]
        name = f'{field} of {member.name} is {value!r:.40}'
        return name, bytes(content), functools.partial(self._same_names, bytes(content))

    def _member(self, rng: random.Random) -> tuple[str, bytes, Callable[[Read], str]]:
        """A member of another name, kind or content."""
        stream, number = io.BytesIO(), rng.randrange(COUNT)
        format = rng.choice((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
        edit = rng.choice(('name', 'kind', 'text', 'image', 'json', 'twice', 'order'))
        file_name = rng.choice(NAMES)
        kind, text = rng.choice(list(KINDS)), rng.choice(TEXTS)
        damage, image = damaged(rng, self.images[number])
        name = {
            'name': f'named {file_name!r:.40}', 'kind': kind, 'text': f'text {text!r:.40}',
            'image': f'image {damage}', 'json': 'json', 'twice': 'twice', 'order': 'order',
        }[edit]  # fmt: skip
        with tarfile.open(fileobj=stream, mode='w', format=tarfile.GNU_FORMAT) as shard:
            shard.format = format if edit != 'name' or len(file_name) < 90 else tarfile.GNU_FORMAT
            for n in rng.sample(range(COUNT), COUNT) if edit == 'order' else range(COUNT):
                if n != number or edit == 'order':
                    self._add(shard, n)
                elif edit == 'name':
                    self._add(shard, n, file_name)
                elif edit == 'kind':
                    self._add(shard, n, kind=KINDS[kind])
                elif edit == 'text':
                    self._add(shard, n, text=text)
                elif edit == 'image':
                    self._add(shard, n, image=image)
                elif edit == 'json':
                    good = json.dumps({'text': 'a', 'long_caption': 'b'}).encode()
                    self._add(shard, n, json_text=damaged_text(rng, good)[1])
                else:
                    self._add(shard, n)
                    self._add(shard, n)
        return name, stream.getvalue(), functools.partial(self._others, number)

    def _packed(self, rng: random.Random) -> tuple[str, bytes, Callable[[Read], str]]:
        """A shard that is packed, padded, joined or no tar at all."""
        import bz2
        import gzip
        import lzma

        end = self.members[-1].offset_data + -(-self.members[-1].size // BLOCK) * BLOCK
        choices = {
            'gz': gzip.compress(self.content), 'bz2': bz2.compress(self.content),
            'xz': lzma.compress(self.content), 'no end': self.content[:end],
            'one end block': self.content[:end] + bytes(BLOCK),
            'long end': self.content + bytes(2**17),
            'two archives': self.content * 2, 'empty': b'', 'zeros': bytes(10240),
            'text': b'hello\n' * 900,
            'image': self.images[0], 'half a block': self.content[: end + 200],
            'odd end': self.content + b'\0' * 77,
            'rubbish after the end': self.content + b'x' * 512,
        }  # fmt: skip
        name = rng.choice(list(choices))
        return name, choices[name], functools.partial(self._same_names, choices[name])

    def _add(
        self,
        shard: tarfile.TarFile,
        number: int,
        name: str = '',
        kind: bytes = tarfile.REGTYPE,
        text: bytes | None = None,
        image: bytes | None = None,
        json_text: bytes | None = None,
    ) -> None:
        image = self.images[number] if image is None else image
        text = f'caption {number}'.encode() if text is None else text
        for file_name, content, type_ in (
            (name or f'{number:04}.jpg', image, kind),
            (f'{number:04}.txt', text, tarfile.REGTYPE),
            *([] if json_text is None else [(f'{number:04}.json', json_text, tarfile.REGTYPE)]),
        ):
            info = tarfile.TarInfo(file_name)
            info.type, info.linkname = type_, '0001.jpg'
            with_content = type_ not in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE)
            info.size = len(content) if with_content else 0
            shard.addfile(info, io.BytesIO(content))

    def _others(self, number: int, read: Read) -> str:
        """Judges whether all records but one are as before."""
        if SHARD in read.damaged:
            return ''
        for name, record in self.good.records.items():
            if f'{number:04}' not in name and read.records.get(name) != record:
                return f'{name} is another record: {read.records.get(name)!r:.80}'
        return ''

    def _same_names(self, content: bytes, read: Read) -> str:
        """Judges whether every record is as before, is broken, or holds the changed bytes."""
        if SHARD in read.damaged:
            return ''
        passed = sum(count for _, count, _ in read.passed_over)
        for member in self.members:
            name = f'{SHARD} {member.name}'
            span = slice(member.offset, member.offset + BLOCK + member.size)
            same = content[span] == self.content[span]
            if name in self.good.records and name not in {*read.records, *read.broken} and same:
                return f'{name} is lost; {passed} members were passed over'
        return ''
