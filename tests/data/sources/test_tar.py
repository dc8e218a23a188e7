import dataclasses
import gzip
import json
import os
import tarfile

import pytest
from helpers.data_folders import add_member, encoded, tar_folder

from infinity_jax.data.config import SourceConfig
from infinity_jax.data.index import load_index
from infinity_jax.data.passed_over import PassedOver
from infinity_jax.data.records import BrokenRecord
from infinity_jax.data.sources.tar import TarSource, open_part
from infinity_jax.errors import UserError

NO_TEXT = (
    'it has no text; members of one record must follow each other in a shard, as tar --sort=name '
    'packs them'
)


def opened(folder):
    return TarSource.open(SourceConfig('tar', str(folder)))


def test_samples_of_all_shards(tmp_path):
    source = opened(tar_folder(tmp_path / 'shards', count=6))
    locations = list(source.locations())
    texts = [source.read(location).captions.short for location in locations]
    assert texts == [(f'tar {i}',) for i in (0, 2, 4, 1, 3, 5)]
    assert source.read(locations[3]).open_image().read() == encoded(64, 64, 101, 'PNG')
    assert source.record_name(locations[3]) == '001.tar part/0001.png'


def test_incomplete_samples_are_broken_records(tmp_path):
    with tarfile.open(tmp_path / 'a.tar', 'w') as shard:
        add_member(shard, 'a.txt', b'no image')
        add_member(shard, 'b.jpg', encoded(8, 8))
        add_member(shard, 'c.jpg', encoded(8, 8))
        add_member(shard, 'c.json', b'{')
        add_member(shard, 'd.cls', b'3')  # of no use
    source = opened(tmp_path)
    bare, no_text, bad = source.locations()
    for location, reason in ((bare, 'no image'), (no_text, 'no text'), (bad, 'bad JSON')):
        with pytest.raises(BrokenRecord, match=reason):
            source.read(location)
    assert source.record_name(bare) == 'a.tar a.txt'
    images = dataclasses.replace(source, text_field='')  # for tokenizers
    assert images.read(no_text).captions is None


def test_unreadable_shards_are_user_errors(tmp_path):
    with pytest.raises(UserError, match='no \\*.tar'):
        opened(tmp_path)
    for content, reason in (
        (b'this is no tar' * 100, 'invalid header'),
        (b'', 'empty'),
        (gzip.compress(b'a' * 1000), 'it is compressed with gzip; unpack it'),
    ):
        (tmp_path / 'a.tar').write_bytes(content)
        with pytest.raises(UserError, match=f'holds no record, a.tar: {reason}'):
            load_index(opened(tmp_path), tmp_path / 'index')


@pytest.fixture
def shards(tmp_path):
    """The folder of two shards of three records each, the first one's bytes, and where it ends."""
    folder = tar_folder(tmp_path / 'shards', count=6)
    shard = folder / '000.tar'
    with tarfile.open(shard) as members:
        starts = [member.offset for member in members.getmembers()]
        end = members.offset
    return folder, shard.read_bytes(), starts[2], end


def damage(folder):
    """(name, reason) of the damaged shards, and the number of records of the others."""
    passed_over = PassedOver()
    records = len(list(opened(folder).locations(passed_over)))
    return [row[:2] for row in passed_over.damaged], records


def test_a_damaged_shard_is_left_out_and_the_others_are_read(shards):
    folder, whole, second, end = shards
    changed = bytearray(whole)
    changed[second + 3] ^= 255  # in the name, which the header's checksum covers
    cut = f'damaged or cut off at byte {second}; fetch or pack it again'
    follows = f'a second archive follows at byte {len(whole)}; make it a file of its own'
    for damaged, reason in (
        (whole[: second + 200], cut),
        (bytes(changed), cut),
        (whole[: second + 800], 'unexpected end of data; fetch or pack it again'),
        (whole + whole, follows),
        (whole + b'rest', f'damaged or cut off at byte {end}; fetch or pack it again'),
    ):
        (folder / '000.tar').write_bytes(damaged)
        assert damage(folder) == ([('000.tar', reason)], 3)


def test_zeros_and_a_missing_end_are_no_damage(shards):
    folder, whole, _, end = shards
    for shard in (whole[:-1], whole[:end], whole[: end + 512], whole + bytes(3 << 20)):
        (folder / '000.tar').write_bytes(shard)
        assert damage(folder) == ([], 6)


def test_a_part_of_a_file_is_a_file(tmp_path):
    (tmp_path / 'whole').write_bytes(bytes(range(100)))
    with open_part(tmp_path / 'whole', 10, 20) as part:
        assert part.read() == bytes(range(10, 30)) and part.read() == b''
        assert part.seek(-5, 2) == 15 and part.read(3) == bytes([25, 26, 27])
        part.seek(2)
        assert part.seek(1, 1) == 3 and part.read(1) == bytes([13])


def shard(folder, *names):
    """A shard of one-byte members and of images; texts hold their own names."""
    with tarfile.open(folder / 'a.tar', 'w') as tar:
        for name in names:
            if name.endswith('.txt'):
                add_member(tar, name, name.encode())
            elif name.endswith('.json'):
                add_member(tar, name, json.dumps({'text': name}).encode())
            else:
                add_member(tar, name, name.encode())
    return opened(folder)


def pairs(source, passed_over=None):
    """(image, caption) of each record, or the reason why it is broken."""
    found = []
    for location in source.locations(passed_over):
        try:
            record = source.read(location)
            with record.open_image() as image:
                found.append((image.read().decode(), record.captions.short[0]))
        except BrokenRecord as error:
            found.append(str(error))
    return found


@pytest.mark.parametrize(('names', 'wanted'), [
    # WebDataset: up to the first dot.
    (('1.image.jpg', '1.caption.txt'), [('1.image.jpg', '1.caption.txt')]),
    (('1.jpg', '1.en.txt'), [('1.jpg', '1.en.txt')]),
    (('v1.0/1.jpg', 'v1.0/1.txt'), [('v1.0/1.jpg', 'v1.0/1.txt')]),
    (('./1.JPG', './1.TXT'.lower()), [('./1.JPG', './1.txt')]),
    # Further dots in the name.
    (('photo.v2.jpg', 'photo.v2.txt'), [('photo.v2.jpg', 'photo.v2.txt')]),
    (
        ('a_1.5_1.gif', 'a_1.5_1.txt', 'a_1.5_2.tif', 'a_1.5_2.txt', 'a_1.5_3.png'),
        [('a_1.5_1.gif', 'a_1.5_1.txt'), ('a_1.5_2.tif', 'a_1.5_2.txt'), NO_TEXT],
    ),
    (('p.1.jpg', 'p.2.jpg', 'p.1.txt', 'p.2.json'),
     [('p.1.jpg', 'p.1.txt'), ('p.2.jpg', 'p.2.json')]),
    (('1.jpg', '1.txt', '1.v2.jpg', '1.v2.txt'), [('1.jpg', '1.txt'), ('1.v2.jpg', '1.v2.txt')]),
    # The text of the image's own name counts, and a mask is no image of its own.
    (('1.jpg', '1.mask.png', '1.txt'), [('1.jpg', '1.txt')]),
    (('1.jpg', '1.mask.png', '1.caption.txt'), [('1.jpg', '1.caption.txt')]),
    (('1.jpg', '1.json', '1.seg.txt'), [('1.jpg', '1.json')]),
    (('1.image.jpg', '1.mask.png', '1.txt'), ['it has several images and none of them has the name '
                                              'of a text']),
    (('1.jpg', '1.en.txt', '1.fr.txt'), ['it has several texts and none of them has the name of '
                                         'the image']),
])  # fmt: skip
def test_records_of_names_with_dots(tmp_path, names, wanted):
    source = shard(tmp_path, *names)
    assert pairs(source) == wanted
    for location in source.locations():
        assert source.record_name(location).startswith('a.tar ')


def test_members_that_no_record_uses_are_counted(tmp_path):
    (tmp_path / '00000_stats.json').write_text('{}')
    (tmp_path / 'b.tar.gz').write_bytes(b'')
    os.mkfifo(tmp_path / 'pipe.tar')
    passed_over = PassedOver()
    source = shard(
        tmp_path, '1.jpg', '1.txt', '1.cls', '1.mask.png', 'readme', '._2.jpg', '.git/3.jpg',
        '4.jpg', '4.txt', '4.jpg', '4.txt', '4.jpg', '4.txt', '4.jpg', '4.txt',
    )  # fmt: skip
    assert pairs(source, passed_over) == [('1.jpg', '1.txt'), ('4.jpg', '4.txt')]
    assert {reason: count for reason, count, _ in passed_over.rows} == {
        'file next to the shards, ending .json': 1,
        'file next to the shards, ending .gz': 1,
        'file next to the shards, not a regular file': 1,
        'member of ending .cls': 1,
        'member of no ending': 1,
        'hidden member': 2,
        'a further image of a record': 1,
        'image replaced by a later one of the same key': 3,
        'text replaced by a later one of the same key': 3,
    }


def test_the_reason_is_named_where_no_member_is_a_record(tmp_path):
    source = shard(tmp_path, '1.cls', '2.cls')
    with pytest.raises(
        UserError, match='no record, 2 passed over: member of ending .cls .*a.tar 1'
    ):
        load_index(source, tmp_path / 'index')


def test_captions_that_cannot_be_read_are_broken_records(tmp_path):
    with tarfile.open(tmp_path / 'a.tar', 'w') as tar:
        for number, (ending, content) in enumerate((
            ('json', b'[' * 100_000), ('json', b'{"text":' * 100_000), ('txt', b'a\0b'),
            ('json', b'{"text": "\\ud83d"}'), ('txt', b'\xff\xfea'), ('txt', b'\xef\xbb\xbfa cat'),
        )):  # fmt: skip
            add_member(tar, f'{number}.jpg', b'image')
            add_member(tar, f'{number}.{ending}', content)
    deep, deeper, zero, half, utf16, marked = pairs(opened(tmp_path))
    assert deep == deeper == 'bad JSON: it is nested too deeply'
    assert zero == 'a caption holds a zero byte' and half == 'a caption holds half of a character'
    assert utf16.startswith('text cannot be read') and marked == ('image', 'a cat')
