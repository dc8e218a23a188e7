"""Groups the members of a tar shard, or the files of a folder, to records, by their names.

As in WebDataset, members that follow each other and agree up to the first dot of the file name
belong together, so `0001.image.jpg` and `0001.caption.txt` are one record. Names with further dots
are also common (`photo.0001.jpg`, `img_1.5_0001.jpg`): where several images agree up to the first
dot, an image belongs with the text of its own name, that is up to the last dot.
"""

import itertools
import pathlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from infinity_jax.data.decode import ENDINGS
from infinity_jax.data.passed_over import PassedOver
from infinity_jax.data.records import BrokenRecord

IMAGE, TEXT, JSON = 'image', 'text', 'json'
_KINDS = {**dict.fromkeys(ENDINGS, IMAGE), '.txt': TEXT, '.caption': TEXT, '.json': JSON}
# In a location, instead of a member: the record has none, or several.
ABSENT = -1
SEVERAL = -2


def kind_of(name: str) -> str | None:
    """The kind of a file by its ending; None if it cannot be part of a record."""
    return _KINDS.get(pathlib.PurePosixPath(name).suffix.lower())


class Member(NamedTuple):
    """A member of a shard, or a file of a folder, that may be part of a record."""

    name: str
    kind: str  # IMAGE, TEXT or JSON
    offset: int  # of its content in the shard; of a file, its number
    size: int

    @property
    def base(self) -> str:
        """The path up to the first dot of the file name."""
        folder, _, file_name = self.name.rpartition('/')
        return f'{folder}/{file_name.partition(".")[0]}'

    @property
    def stem(self) -> str:
        """The path up to the last dot of the file name."""
        folder, _, file_name = self.name.rpartition('/')
        return f'{folder}/{file_name.rpartition(".")[0]}'


class Record(NamedTuple):
    """The members of one record, by kind; and the kind of which it has several, or ''."""

    members: dict[str, Member]
    several: str = ''


def group(members: Iterable[Member], passed_over: PassedOver) -> Iterator[Record]:
    """The records of a shard, in its order; members that no record uses are counted."""
    for base, run in itertools.groupby(members, lambda member: member.base):
        yield from _records(base, _by_stem(run, passed_over), passed_over)


def check_members(image: int, text: int, fields: int) -> None:
    """Raises `BrokenRecord` unless a record has an image and not several of one kind.

    Args:
      image, text, fields: of the image, the text and JSON: `ABSENT`, `SEVERAL` or any other number.
    """
    if image == ABSENT:
        raise BrokenRecord('it has no image')
    if image == SEVERAL:
        raise BrokenRecord('it has several images and none of them has the name of a text')
    if SEVERAL in (text, fields):
        raise BrokenRecord('it has several texts and none of them has the name of the image')


def _by_stem(run: Iterable[Member], passed_over: PassedOver) -> dict[str, dict[str, Member]]:
    stems: dict[str, dict[str, Member]] = {}
    for member in run:
        own = stems.setdefault(member.stem, {})
        if member.kind in own:  # as when an archive is unpacked, the later one counts
            reason = f'{member.kind} replaced by a later one of the same key'
            passed_over.add(reason, own[member.kind].name)
        own[member.kind] = member
    return stems


def _records(
    base: str, stems: dict[str, dict[str, Member]], passed_over: PassedOver
) -> Iterator[Record]:
    """The records of one base.

    No or one image: one record with all members (without an image, one per stem: broken records).
    Several images: one record per stem. But `NAME.jpg` with its own text is a record to which
    images such as `NAME.mask.png` without a text are of no use; and several images of which none
    has the name of a text are one broken record.
    """
    images = [stem for stem, own in stems.items() if IMAGE in own]
    captioned = [stem for stem in images if len(stems[stem]) > 1]
    if len(images) == 1:
        yield _merged(base, images[0], stems, passed_over)
        return
    if base in images:
        for stem in [stem for stem in images if stem != base and stem not in captioned]:
            passed_over.add('a further image of a record', stems.pop(stem)[IMAGE].name)
        if set(captioned) <= {base}:
            yield _merged(base, base, stems, passed_over)
            return
    elif images and not captioned and len(images) < len(stems):
        members = {kind: member for own in stems.values() for kind, member in own.items()}
        yield Record(members, several=IMAGE)
        return
    for own in stems.values():
        yield Record(own)


def _merged(
    base: str, image: str, stems: dict[str, dict[str, Member]], passed_over: PassedOver
) -> Record:
    """The record of one image: its text is that of its stem, else of the base, else the only one.

    Text and JSON are looked for separately in the first two.
    """
    used = {**stems.get(base, {}), **stems[image]}
    others = [m for own in stems.values() for m in own.values() if m not in used.values()]
    several = ''
    if len(used) == 1:
        for kind in (TEXT, JSON):
            found = [member for member in others if member.kind == kind]
            if len(found) == 1:
                used[kind] = found[0]
            elif found and not several and TEXT not in used:
                several = kind
    for member in others:
        if member not in used.values() and member.kind != several:
            passed_over.add(f'a further {member.kind} of a record', member.name)
    return Record(used, several)
