"""Reading `.pth` files: exact values, nothing executed, damage named."""

import os
import pickle
import tracemalloc
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
from helpers.torch_files import Stored, arrays_of_every_dtype, assert_reads, write_pth

from infinity_jax.errors import UserError
from infinity_jax.weights.torch_file import reader, unpickler
from infinity_jax.weights.torch_file.reader import read_torch_file
from infinity_jax.weights.torch_file.unpickler import Opaque


@pytest.mark.parametrize('compression', [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_reads_every_dtype(tmp_path, compression):
    content = arrays_of_every_dtype(3, 4)
    content['scalar'] = np.array(2.5, np.float32)
    content['empty'] = np.zeros((0, 3), np.float32)
    write_pth(tmp_path / 'x.pth', OrderedDict(content), compression)
    found = read_torch_file(tmp_path / 'x.pth')
    assert_reads(found, content)


def test_views_share_one_storage(tmp_path):
    flat = np.arange(24, dtype=np.float32)
    views = {
        'transposed': Stored(flat, 0, (4, 6), (1, 4)),
        'slice': Stored(flat, 5, (2, 3), (6, 1)),
        'broadcast': Stored(flat, 7, (3, 2), (0, 1)),
    }
    write_pth(tmp_path / 'x.pth', views)
    found = read_torch_file(tmp_path / 'x.pth')
    np.testing.assert_array_equal(found['transposed'].read(), flat.reshape(6, 4).T)
    np.testing.assert_array_equal(found['slice'].read(), [[5, 6, 7], [11, 12, 13]])
    np.testing.assert_array_equal(found['broadcast'].read(), [[7, 8]] * 3)
    assert found['transposed'].read().flags.c_contiguous


def test_nested_content_of_training_checkpoints(tmp_path):
    content = {'epoch': 3, 'trainer': {'gpt': {'w': np.ones(2, np.float32)}}, 'list': [1, 'a', 2.5]}
    write_pth(tmp_path / 'x.pth', content)
    found = read_torch_file(tmp_path / 'x.pth')
    assert found['epoch'] == 3 and found['list'] == [1, 'a', 2.5]
    np.testing.assert_array_equal(found['trainer']['gpt']['w'].read(), [1, 1])


class Evil:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


def test_anything_to_execute_becomes_a_placeholder(tmp_path):
    target = tmp_path / 'made by the pickle'
    path = tmp_path / 'evil.pth'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('archive/data.pkl', pickle.dumps({'w': Evil(str(target))}, protocol=2))
    found = read_torch_file(path)['w']
    assert isinstance(found, Opaque) and found.pickled_name in ('posix.mkdir', 'nt.mkdir')
    assert not target.exists()


@pytest.mark.parametrize(
    'name', ['builtins.eval', 'torch.load', 'torch.storage._load_from_bytes', 'collections.deque']
)
def test_only_the_known_names_are_looked_up(tmp_path, name):
    module, _, attribute = name.rpartition('.')
    with zipfile.ZipFile(tmp_path / 'x.pth', 'w') as archive:
        archive.writestr('archive/data.pkl', f'c{module}\n{attribute}\n.'.encode())
    found = read_torch_file(tmp_path / 'x.pth')
    assert issubclass(found, Opaque) and found.pickled_name == name


# What pickles do with objects: build, call, append, set items and state, in old and new ways.
ON_OBJECTS = {
    'REDUCE': b'cos\nmkdir\n(S"x"\ntR.',
    'NEWOBJ and BUILD': b'\x80\x02cos\nmkdir\n)\x81}X\x01\x00\x00\x00aK\x01sb.',
    'NEWOBJ_EX': b'\x80\x04cos\nmkdir\n)}\x92.',
    'INST': b'(S"x"\nios\nmkdir\n.',
    'OBJ': b'(cos\nmkdir\nS"x"\no.',
    'SETITEM': b'\x80\x02cos\nmkdir\n)\x81K\x01K\x02s.',
    'APPENDS': b'\x80\x02cos\nmkdir\n)\x81(K\x01K\x02e.',
    'ADDITEMS': b'\x80\x04cos\nmkdir\n)\x81(K\x01K\x02\x90.',
    'a call of a result': b'cos\nmkdir\n(S"x"\ntR(S"y"\ntR.',
    'STACK_GLOBAL': b'\x80\x04\x8c\x02os\x8c\x05mkdir\x93)R.',
}


@pytest.mark.parametrize('content', ON_OBJECTS.values(), ids=ON_OBJECTS)
def test_all_that_a_pickle_does_to_an_object_is_without_effect(tmp_path, monkeypatch, content):
    monkeypatch.setattr(os, 'mkdir', None)
    with zipfile.ZipFile(tmp_path / 'x.pth', 'w') as archive:
        archive.writestr('archive/data.pkl', content)
    found = read_torch_file(tmp_path / 'x.pth')
    assert isinstance(found, Opaque) and found.pickled_name == 'os.mkdir' and not vars(found)


def test_tensors_of_elements_that_numpy_lacks_are_placeholders(tmp_path):
    """As torch writes float8: `_rebuild_tensor_v3` of an untyped storage."""
    storage = b'((Vstorage\nctorch\nUntypedStorage\nV0\nVcpu\nI4\ntQ'
    rebuild = b'ctorch._utils\n_rebuild_tensor_v3\n' + storage + b'I0\n(I4\nt(I1\nttR.'
    with zipfile.ZipFile(tmp_path / 'x.pth', 'w') as archive:
        archive.writestr('archive/data.pkl', rebuild)
    assert read_torch_file(tmp_path / 'x.pth').pickled_name == 'torch._utils._rebuild_tensor_v3'


def test_cut_short(tmp_path):
    path = tmp_path / 'x.pth'
    write_pth(path, {'w': np.zeros(10000, np.float32)})
    whole = path.read_bytes()
    for part in (len(whole) // 2, len(whole) - 30, 100):
        path.write_bytes(whole[:part])
        with pytest.raises(UserError, match='cut short'):
            read_torch_file(path)


def test_storage_shorter_than_its_tensors(tmp_path):
    flat = np.zeros(4, np.float32)
    write_pth(tmp_path / 'x.pth', {'w': Stored(flat, 0, (3, 3), (3, 1))})
    with pytest.raises(UserError, match='reaches element 8 of a storage of 4'):
        read_torch_file(tmp_path / 'x.pth')
    write_pth(tmp_path / 'y.pth', {'w': flat})
    with zipfile.ZipFile(tmp_path / 'y.pth') as archive:
        members = {n: archive.read(n) for n in archive.namelist()}
    members['archive/data/0'] = b'1234'
    with zipfile.ZipFile(tmp_path / 'y.pth', 'w') as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(UserError, match='is 4 bytes; wanted 16'):
        read_torch_file(tmp_path / 'y.pth')


def test_a_tensor_that_was_changed_after_it_was_built(tmp_path):
    write_pth(tmp_path / 'x.pth', {'w': np.zeros(4, np.float32)})
    with zipfile.ZipFile(tmp_path / 'x.pth') as archive:
        members = {n: archive.read(n) for n in archive.namelist()}
    # Behind the tensor's REDUCE: its shape becomes (300000,), which reaches beyond the file.
    change = b'}X\x05\x00\x00\x00shapeJ' + (300_000).to_bytes(4, 'little') + b'\x85sb'
    before, end = members['archive/data.pkl'].rsplit(b's.', 1)
    members['archive/data.pkl'] = before + change + b's.' + end
    with zipfile.ZipFile(tmp_path / 'x.pth', 'w') as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(UserError, match='changes a tensor'):
        read_torch_file(tmp_path / 'x.pth')


def test_other_files_are_named_for_what_they_are(tmp_path):
    path = tmp_path / 'x.pth'
    with pytest.raises(UserError, match='no such file'):
        read_torch_file(path)
    path.write_bytes(b'\x80\x02}q\x00.')
    with pytest.raises(UserError, match='magic number'):
        read_torch_file(path)
    path.write_bytes(b'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 44\n')
    with pytest.raises(UserError, match=r'x\.pth: a Git-LFS pointer.*run git lfs pull'):
        read_torch_file(path)
    for text in (b'hello there', b''):
        path.write_bytes(text)
        with pytest.raises(UserError, match='not a torch file.*; name one that torch.save wrote'):
            read_torch_file(path)
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('a.txt', 'a')
    with pytest.raises(UserError, match='not a torch file'):
        read_torch_file(path)
    for garbage in (b'', b'garbage', b'\x80\x02}'):
        with zipfile.ZipFile(path, 'w') as archive:
            archive.writestr('archive/data.pkl', garbage)
        with pytest.raises(UserError, match='x.pth'):
            read_torch_file(path)


@pytest.mark.parametrize('compression', [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_flipped_bit_of_a_storage_is_refused(tmp_path, compression):
    path = tmp_path / 'x.pth'
    write_pth(path, {'w': np.random.default_rng(0).standard_normal(999).astype(np.float32)})
    with zipfile.ZipFile(path) as archive:
        members = {n: archive.read(n) for n in archive.namelist()}
    with zipfile.ZipFile(path, 'w', compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        (storage,) = (info for info in archive.infolist() if info.filename.endswith('/data/0'))
    assert read_torch_file(path)['w'].read().shape == (999,)
    whole = bytearray(path.read_bytes())
    for place in (60, storage.compress_size // 2, storage.compress_size - 9):
        damaged = whole.copy()
        damaged[storage.header_offset + 30 + len(storage.filename) + place] ^= 4
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r'x\.pth: archive/data/0 is damaged'):
            read_torch_file(path)['w'].read()
        with pytest.raises(UserError, match=r'x\.pth: archive/data/0 is damaged'):
            read_torch_file(path)['w'].read((slice(0, 1),))


def test_a_file_without_checksums_is_read(tmp_path):
    path = tmp_path / 'x.pth'
    write_pth(path, {'w': np.arange(5, dtype=np.float32)})
    with zipfile.ZipFile(path) as archive:
        checksum = archive.getinfo('archive/data/0').CRC.to_bytes(4, 'little')
    path.write_bytes(path.read_bytes().replace(checksum, bytes(4)))
    assert read_torch_file(path)['w'].read()[-1] == 4


HUGE_PICKLES = {
    'LONG_BINPUT': b'\x80\x02}r\xff\xff\xff\x7f.',
    'PUT': b'\x80\x02}p99999999999\n.',
    'BINBYTES8': b'\x80\x04\x8e' + (2**35).to_bytes(8, 'little') + b'x.',
    'BINBYTES8, beyond 63 bits': b'\x80\x04\x8e' + b'\xff' * 8 + b'x.',
    'BINUNICODE8': b'\x80\x04\x8d' + (2**35).to_bytes(8, 'little') + b'x.',
    'BYTEARRAY8': b'\x80\x05\x96' + (2**35).to_bytes(8, 'little') + b'x.',
    'BINBYTES': b'\x80\x03B\xff\xff\xff\xffx.',
    'LONG4': b'\x80\x02\x8b\xff\xff\xff\x7fx.',
    'FRAME': b'\x80\x04\x95' + (2**40).to_bytes(8, 'little') + b'}.',
}


@pytest.mark.parametrize('content', HUGE_PICKLES.values(), ids=HUGE_PICKLES)
@pytest.mark.parametrize('layout', ['zip', 'legacy'])
def test_a_pickle_that_asks_for_gigabytes_is_refused_without_them(tmp_path, content, layout):
    path = tmp_path / 'x.pth'
    if layout == 'zip':
        with zipfile.ZipFile(path, 'w') as archive:
            archive.writestr('archive/data.pkl', content)
    else:
        path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=r'x\.pth: '):
            read_torch_file(path)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


def test_a_pickle_of_gigabytes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, 'MAX_PICKLE_BYTES', 10)
    write_pth(tmp_path / 'x.pth', {'w': np.zeros(4, np.float32)})
    with pytest.raises(UserError, match='data.pkl has .* bytes; wanted 10 at most'):
        read_torch_file(tmp_path / 'x.pth')


def test_a_pickle_of_many_instructions_is_refused(tmp_path, monkeypatch):
    write_pth(tmp_path / 'x.pth', {'w': np.zeros(4, np.float32)})
    monkeypatch.setattr(unpickler, 'MAX_INSTRUCTIONS', 20)
    with pytest.raises(UserError, match=r'x\.pth: its pickle has more than 20 instructions'):
        read_torch_file(tmp_path / 'x.pth')


def test_a_compressed_member_of_gigabytes_is_refused(tmp_path):
    flat = np.zeros(2**19, np.float32)
    content = {'w': Stored(flat, 0, (4,), (1,))}
    write_pth(tmp_path / 'x.pth', content, zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(tmp_path / 'x.pth') as archive:
        pickled = archive.read('archive/data.pkl')
    fewer = pickled.replace((2**19).to_bytes(4, 'little'), (4).to_bytes(4, 'little'))
    assert fewer != pickled
    with zipfile.ZipFile(tmp_path / 'y.pth', 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('archive/data.pkl', fewer)
        archive.writestr('archive/data/0', flat.tobytes())
    with pytest.raises(UserError, match=r'data/0 has 2097152 bytes; wanted 16'):
        read_torch_file(tmp_path / 'y.pth')['w'].read()


def test_a_tensor_that_is_much_larger_than_its_storage_is_refused(tmp_path):
    flat = np.ones(3, np.float32)
    write_pth(tmp_path / 'x.pth', {'w': Stored(flat, 0, (1000, 3), (0, 1))})  # as of expand()
    assert read_torch_file(tmp_path / 'x.pth')['w'].read().shape == (1000, 3)
    write_pth(tmp_path / 'x.pth', {'w': Stored(flat, 0, (10**6, 10**6), (0, 0))})
    with pytest.raises(UserError, match='much larger than it: the file is damaged'):
        read_torch_file(tmp_path / 'x.pth')


def test_a_name_that_is_twice_in_the_zip_is_refused(tmp_path):
    path = tmp_path / 'x.pth'
    write_pth(path, {'w': np.ones(3, np.float32)})
    with zipfile.ZipFile(path, 'a') as archive, pytest.warns(UserWarning, match='Duplicate name'):
        archive.writestr('archive/data/0', np.zeros(3, np.float32).tobytes())
    with pytest.raises(UserError, match='x.pth: its zip directory has 1 names twice'):
        read_torch_file(path)


def test_a_member_that_begins_after_the_end_is_damage(tmp_path):
    path = tmp_path / 'x.pth'
    write_pth(path, {'w': np.ones(3, np.float32)})
    content = bytearray(path.read_bytes())
    entry = content.rindex(b'archive/data/0') - 46  # its header in the zip directory
    content[entry + 42 : entry + 46] = len(content).to_bytes(4, 'little')
    path.write_bytes(content)
    with pytest.raises(UserError, match='archive/data/0 is damaged'):
        read_torch_file(path)['w'].read()
