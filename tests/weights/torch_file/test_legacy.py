"""Reading `.pth` files in the layout before torch 1.6: exact values, damage named."""

import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
from helpers.torch_files import (
    C_TYPES,
    MAGIC,
    VERSION,
    Stored,
    arrays_of_every_dtype,
    assert_reads,
    write_legacy_pth,
)

from infinity_jax.errors import UserError
from infinity_jax.weights.torch_file.reader import read_torch_file
from infinity_jax.weights.torch_file.unpickler import Opaque


def python_2(before=b'', after=b''):
    """What Python 2 and torch 0.1 made of a dict with one tensor, w = [[1.5], [-2]].

    Byte strings, an OrderedDict of pairs, tensors that tell no gradient, longs for numbers of
    elements. `before` and `after` stand around the tensor.
    """
    storage = b'(U\x07storagectorch\nFloatStorage\nU\x0218U\x06cuda:0\x8a\x01\x02NtQ'
    tensor = b'ctorch._utils\n_rebuild_tensor\n(' + storage + b'K\x00K\x02K\x01\x86K\x01K\x01\x86tR'
    content = (
        b'\x80\x02ccollections\nOrderedDict\n]](U\x01w' + before + tensor + after + b'ea\x85R.'
    )
    heads = b''.join(pickle.dumps(x, protocol=2) for x in (MAGIC, VERSION, C_TYPES))
    elements = (2).to_bytes(8, 'little') + np.array([1.5, -2], np.float32).tobytes()
    return heads + content + b'\x80\x02](U\x0218e.' + elements


@pytest.mark.parametrize('length', [1, 2, 3])  # odd and even places of the elements in the file
def test_reads_every_dtype(tmp_path, length):
    content = arrays_of_every_dtype(3, length)
    content['x' * length] = np.array(2.5, np.float32)
    content['empty'] = np.zeros((0, 3), np.float32)
    write_legacy_pth(tmp_path / 'x.pth', OrderedDict(content))
    found = read_torch_file(tmp_path / 'x.pth')
    assert_reads(found, content)


def test_views_share_one_storage(tmp_path):
    flat = np.arange(24, dtype=np.float32)
    views = {
        'transposed': Stored(flat, 0, (4, 6), (1, 4)),
        'slice': Stored(flat, 5, (2, 3), (6, 1)),
        'nested': {'broadcast': Stored(flat, 7, (3, 2), (0, 1))},
    }
    write_legacy_pth(tmp_path / 'x.pth', views)
    assert os.path.getsize(tmp_path / 'x.pth') < 2 * flat.nbytes + 600
    found = read_torch_file(tmp_path / 'x.pth')
    np.testing.assert_array_equal(found['transposed'].read(), flat.reshape(6, 4).T)
    np.testing.assert_array_equal(found['slice'].read(), [[5, 6, 7], [11, 12, 13]])
    np.testing.assert_array_equal(found['slice'].read((slice(1), 2)), [7])
    np.testing.assert_array_equal(found['nested']['broadcast'].read(), [[7, 8]] * 3)


PARAMETER = b'ctorch.nn.parameter\nParameter\n', b'\x85R\x88\x89N\x87b'


@pytest.mark.parametrize('around', [(b'', b''), PARAMETER])
def test_the_first_torches(tmp_path, around):
    (tmp_path / 'x.pth').write_bytes(python_2(*around))
    found = read_torch_file(tmp_path / 'x.pth')
    assert isinstance(found, OrderedDict) and list(found) == ['w']
    np.testing.assert_array_equal(found['w'].read(), np.array([[1.5], [-2]], np.float32))


class Evil:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize('place', ['magic', 'version', 'keys'])
def test_anything_to_execute_in_the_frame_of_a_file_is_refused(tmp_path, place):
    target = tmp_path / 'made by the pickle'
    content = {'w': np.ones(2, np.float32)}
    write_legacy_pth(tmp_path / 'evil.pth', content, **{place: Evil(str(target))})
    with pytest.raises(UserError, match=r'evil\.pth: '):
        read_torch_file(tmp_path / 'evil.pth')
    assert not target.exists()


def test_anything_to_execute_next_to_tensors_is_a_placeholder(tmp_path):
    target = tmp_path / 'made by the pickle'
    content = {'w': np.ones(2, np.float32), 'x': Evil(str(target))}
    write_legacy_pth(tmp_path / 'evil.pth', content)
    found = read_torch_file(tmp_path / 'evil.pth')
    assert isinstance(found['x'], Opaque)
    assert found['x'].pickled_name in ('posix.mkdir', 'nt.mkdir') and not target.exists()


def test_cut_short_anywhere(tmp_path):
    path = tmp_path / 'x.pth'
    arrays = [np.ones(5, np.float32), np.ones(3, np.int64), np.ones(0, np.float32)]
    write_legacy_pth(path, dict(zip('wbe', arrays, strict=True)))
    whole = path.read_bytes()
    elements = len(whole) - sum(8 + array.nbytes for array in arrays)
    for part in range(1, len(whole)):
        path.write_bytes(whole[:part])
        wanted = 'damaged|not a pickle' if part < elements else 'cut short before the end of'
        with pytest.raises(UserError, match=rf'x\.pth: .*({wanted})'):
            read_torch_file(path)


@pytest.mark.parametrize(
    'lie, wanted',
    [
        ({'magic': MAGIC + 1}, "does not start with torch's magic number"),
        ({'version': 1000}, 'version 1000 of the layout before torch 1.6; wanted 1001'),
        ({'keys': ['0']}, 'lists 1 storages, which are not the 2 of its tensors'),
        ({'keys': ['0', '0', '1']}, 'lists 3 storages'),
        ({'keys': ['0', '2']}, 'lists 2 storages'),
        ({'counts': {'1': 4}}, 'storage 1 has 4 elements; wanted 3'),
        ({'counts': {'0': 2**63}}, 'storage 0 has 9223372036854775808 elements; wanted 5'),
        ({'view': ('1', 0, 2)}, 'unknown persistent id'),
        ({'keys': 7}, 'not a pickle of plain tensors'),
    ],
)
def test_what_does_not_agree(tmp_path, lie, wanted):
    content = {'w': np.ones(5, np.float32), 'b': np.ones(3, np.int64)}
    write_legacy_pth(tmp_path / 'x.pth', content, **lie)
    with pytest.raises(UserError, match=rf'x\.pth: .*{wanted}'):
        read_torch_file(tmp_path / 'x.pth')


@pytest.mark.parametrize(
    'old, new, wanted',
    [
        (b'\x8a\x01\x02', b'\x8a\x01\xfe', 'storage of -2 elements'),
        (b'K\x00K\x02K\x01', b'K\x00K\x03K\x01', 'reaches element 2 of a storage of 2'),
        (b'NtQ', b'NtQ}b', 'changes a storage'),
        (b'tRea', b'tR}bea', 'changes a tensor'),
        (b'tRea', b'tR(K\x01K\x02tbea', 'changes a tensor'),
    ],
)
def test_what_a_pickle_may_not_say(tmp_path, old, new, wanted):
    whole = python_2()
    assert whole.count(old) == 1
    (tmp_path / 'x.pth').write_bytes(whole.replace(old, new))
    with pytest.raises(UserError, match=wanted):
        read_torch_file(tmp_path / 'x.pth')


def test_one_storage_of_two_sizes(tmp_path):
    storage = b'(U\x07storagectorch\nFloatStorage\nU\x0218U\x03cpuK\x01NtQ0'
    (tmp_path / 'x.pth').write_bytes(python_2(before=storage))
    with pytest.raises(UserError, match='is 1 float32 to one tensor and 2 float32 to another'):
        read_torch_file(tmp_path / 'x.pth')


def test_bytes_after_the_last_storage_are_damage(tmp_path):
    write_legacy_pth(tmp_path / 'x.pth', {'w': np.ones(3, np.float32)})
    content = (tmp_path / 'x.pth').read_bytes()
    for rest in (b'\0', content):
        (tmp_path / 'x.pth').write_bytes(content + rest)
        with pytest.raises(UserError, match=f'x.pth: {len(rest)} bytes after its last storage'):
            read_torch_file(tmp_path / 'x.pth')
