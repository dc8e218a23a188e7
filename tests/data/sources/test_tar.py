import tarfile

import pytest
from helpers.data_folders import add_member, encoded, tar_folder

from infinity_jax.data.config import SourceConfig
from infinity_jax.data.records import BrokenRecord
from infinity_jax.data.sources.tar import TarSource, open_part
from infinity_jax.errors import UserError


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
    for location, reason in ((bare, 'no image'), (bad, 'bad JSON')):
        with pytest.raises(BrokenRecord, match=reason):
            source.read(location)
    assert source.record_name(bare) == 'a.tar a.txt'
    assert not source.read(no_text).captions.usable


def test_unreadable_shards_are_user_errors(tmp_path):
    with pytest.raises(UserError, match='no \\*.tar'):
        opened(tmp_path)
    (tmp_path / 'a.tar').write_bytes(b'this is no tar' * 100)
    with pytest.raises(UserError, match='a.tar.*pack it again'):
        list(opened(tmp_path).locations())


def test_a_shard_that_ends_too_early_is_a_user_error(tmp_path):
    folder = tar_folder(tmp_path / 'shards', count=6)
    shard = folder / '000.tar'
    whole = shard.read_bytes()
    with tarfile.open(shard) as members:
        second = members.getmembers()[2].offset
    changed = bytearray(whole)
    changed[second + 3] ^= 255  # in the name, which the header's checksum covers
    unwritten = whole[:second] + bytes(10 * tarfile.RECORDSIZE)  # a download's empty tail
    for damaged in (whole[:second], whole[: second + 200], bytes(changed), unwritten):
        shard.write_bytes(damaged)
        with pytest.raises(UserError, match=f'000.tar: damaged or cut off at byte {second}; '):
            list(opened(folder).locations())
    shard.write_bytes(whole + whole)
    with pytest.raises(UserError, match='000.tar: damaged or cut off at byte'):
        list(opened(folder).locations())  # tarfile reads the first of the two alone
    shard.write_bytes(whole[:-1])
    list(opened(folder).locations())  # what fills up the last blocks may be missing


def test_a_part_of_a_file_is_a_file(tmp_path):
    (tmp_path / 'whole').write_bytes(bytes(range(100)))
    with open_part(tmp_path / 'whole', 10, 20) as part:
        assert part.read() == bytes(range(10, 30)) and part.read() == b''
        assert part.seek(-5, 2) == 15 and part.read(3) == bytes([25, 26, 27])
        part.seek(2)
        assert part.seek(1, 1) == 3 and part.read(1) == bytes([13])
