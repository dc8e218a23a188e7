"""Features from a file: the distance, and one line for every way in which a file is wrong."""

import numpy as np
import pytest

from infinity_jax.errors import UserError
from infinity_jax.tools.evaluation.feature_file import features_distance

ROWS = np.random.default_rng(0).standard_normal((20, 4))


def test_distance_and_what_it_is_of(tmp_path):
    np.savez(tmp_path / 'f.npz', originals=ROWS, reconstructions=ROWS[:19].astype(np.float16) + 1)
    np.savez_compressed(tmp_path / 'g.npz', originals=ROWS, reconstructions=ROWS + 1, more=0)
    found = features_distance(tmp_path / 'f.npz')
    assert (found.file, found.originals, found.reconstructions, found.width) == ('f.npz', 20, 19, 4)
    assert features_distance(tmp_path / 'g.npz').distance == pytest.approx(4)


@pytest.mark.parametrize(
    ('arrays', 'message'),
    [
        ({'originals': ROWS.astype(str)}, 'originals is of dtype <U32; wanted'),
        ({'originals': ROWS.astype(object)}, 'originals cannot be read (Object arrays'),
        ({'reconstructions': ROWS + 1j}, 'reconstructions is of dtype complex128; wanted'),
        ({'reconstructions': ROWS * np.nan}, 'reconstructions has NaN or infinity in 20 of 20'),
        ({'originals': np.where(ROWS == ROWS[3], np.inf, 1)}, 'originals has NaN or infinity in 1'),
        ({'originals': ROWS * 1e200}, 'have no finite covariance; wanted'),
        ({'originals': ROWS[:1]}, 'originals is of shape (1, 4); wanted'),
        ({'reconstructions': ROWS[0]}, 'reconstructions is of shape (4,); wanted'),
        ({'reconstructions': ROWS[:, :0]}, 'reconstructions is of shape (20, 0); wanted'),
        ({'originals': ROWS[:, :3]}, 'originals has 3 numbers per row, reconstructions 4; wanted'),
    ],
)
def test_wrong_arrays_are_one_line(arrays, message, tmp_path):
    np.savez(tmp_path / 'f.npz', **{'originals': ROWS, 'reconstructions': ROWS} | arrays)
    check_error(tmp_path / 'f.npz', message)


def test_absent_arrays_are_one_line(tmp_path):
    np.savez(tmp_path / 'f.npz', originals=ROWS)
    check_error(tmp_path / 'f.npz', 'no reconstructions, but originals; wanted .npz with originals')
    np.savez(tmp_path / 'f.npz', gt=ROWS)
    check_error(tmp_path / 'f.npz', 'no originals and no reconstructions, but gt; wanted')


def test_files_that_are_none_are_one_line(tmp_path):
    np.savez(tmp_path / 'f.npz', originals=ROWS, reconstructions=ROWS)
    whole = (tmp_path / 'f.npz').read_bytes()
    np.save(tmp_path / 'one.npy', ROWS)
    flipped = bytearray(whole)
    flipped[len(whole) // 4] ^= 255  # a number of the originals
    for name, content, message in (
        ('cut.npz', whole[: len(whole) // 2], 'the file cannot be read (File is not a zip file)'),
        ('damaged.npz', bytes(flipped), 'originals cannot be read (Bad CRC-32'),
        ('empty.npz', b'', 'the file cannot be read (No data left in file)'),
        ('text.npz', b'1 2 3\n', 'the file cannot be read ('),
    ):
        (tmp_path / name).write_bytes(content)
        check_error(tmp_path / name, message)
    check_error(tmp_path / 'one.npy', 'one array, of shape (20, 4); wanted .npz')
    check_error(tmp_path / 'absent.npz', 'the file cannot be read ([Errno 2] No such file')


def check_error(path, message):
    with pytest.raises(UserError) as caught:
        features_distance(path)
    line = str(caught.value)
    assert line.startswith(f'--features {path}: ') and message in line and '\n' not in line
    assert 'wanted' in line and line.count('--features') == 1
