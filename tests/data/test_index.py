import os
import pickle

import numpy as np
import pytest
from helpers.data_folders import encoded, jsonl_folder, line
from PIL import Image

from infinity_jax.data import index as index_module
from infinity_jax.data.config import SourceConfig
from infinity_jax.data.index import load_index
from infinity_jax.data.sources.folder import FolderSource
from infinity_jax.data.sources.jsonl import JsonlSource
from infinity_jax.errors import UserError


def opened(folder):
    return JsonlSource.open(SourceConfig('jsonl', str(folder)))


def test_sizes_are_the_images_own_and_broken_records_have_names(tmp_path):
    index = load_index(opened(jsonl_folder(tmp_path / 'data')), tmp_path / 'index')
    assert index.sizes.tolist() == [[64, 64] if i % 2 else [64, 128] for i in range(8, 12)] + [
        [0, 0], [64, 64], [0, 0], [0, 0],
    ] + [[64, 64] if i % 2 else [64, 128] for i in range(8)]  # fmt: skip
    broken = dict(index.broken)  # the truncated image has a whole header
    assert list(broken) == [f'0.500_1.jsonl line {n}' for n in (5, 7, 8)]
    missing, empty, bad = broken.values()
    assert missing.endswith('missing.jpg: No such file or directory')
    assert empty == 'its caption is empty' and bad.startswith('bad JSON')
    assert len(index) == len(set(index.keys.tolist())) == 16


def test_animations_are_counted(tmp_path):
    folder = tmp_path / 'data'
    folder.mkdir()
    red, blue = (Image.new('RGB', (8, 8), colour) for colour in ('red', 'blue'))
    for ending in ('gif', 'webp', 'png'):
        red.save(folder / f'moving.{ending}', save_all=True, append_images=[blue])
        red.save(folder / f'still.{ending}')
    red.save(folder / 'phone.jpg', 'MPO', save_all=True, append_images=[blue])
    whole = (folder / 'moving.gif').read_bytes()
    (folder / 'cut.gif').write_bytes(whole[: whole.rfind(b'\x2c') + 3])  # in the second frame
    index = load_index(FolderSource.open(SourceConfig('folder', str(folder))), tmp_path / 'index')
    assert not index.broken
    assert index.passed_over == [('all frames of an animation but the first', 3, 'moving.gif')]


def test_it_is_made_once_and_again_when_a_file_changes(tmp_path):
    folder = jsonl_folder(tmp_path / 'data')
    first = load_index(opened(folder), tmp_path / 'index')
    made = (first.folder / 'sizes.npy').stat().st_mtime_ns
    again = load_index(opened(folder), tmp_path / 'index')
    assert again.folder == first.folder
    assert (again.folder / 'sizes.npy').stat().st_mtime_ns == made
    (folder / 'new.png').write_bytes(encoded(20, 40, kind='PNG'))
    with (folder / '1.000_99999.jsonl').open('a') as file:
        file.write('\n' + line('new.png', text='new'))
    changed = load_index(opened(folder), tmp_path / 'index')
    assert len(changed) == 17 and changed.sizes[-1].tolist() == [20, 40]
    assert not list((tmp_path / 'index').glob('*partial'))


def test_a_worker_gets_the_folder_and_not_the_arrays(tmp_path):
    index = load_index(opened(jsonl_folder(tmp_path / 'data')), tmp_path / 'index')
    sizes = np.array(index.sizes)
    assert len(pickle.dumps(index)) < 500
    assert np.array_equal(pickle.loads(pickle.dumps(index)).sizes, sizes)


@pytest.mark.skipif(not os.path.exists('/proc'), reason='needs a folder nobody can write')
def test_a_folder_that_cannot_be_written_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match='data.index_dir'):
        load_index(opened(jsonl_folder(tmp_path / 'data')), '/proc/nowhere')
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'empty' / 'a.jsonl').write_text('\n')
    with pytest.raises(UserError, match='holds no record'):
        load_index(opened(tmp_path / 'empty'), tmp_path / 'index')


def test_hosts_that_make_it_at_once_do_not_disturb_each_other(tmp_path, monkeypatch):
    source, inner, made = opened(jsonl_folder(tmp_path / 'data')), index_module._write, []

    def write(folder, source, *options):
        made.append(folder)
        if len(made) == 1:  # another host, of the same process id, begins and ends meanwhile
            load_index(source, tmp_path / 'index')
        inner(folder, source, *options)

    monkeypatch.setattr(index_module, '_write', write)
    assert len(load_index(source, tmp_path / 'index')) == 16
    assert len(set(made)) == 2 and len(list((tmp_path / 'index').iterdir())) == 1


def test_what_is_no_record_is_counted_by_reason(tmp_path):
    folder = jsonl_folder(tmp_path / 'data', count=2, broken=False)
    (folder / '._1.000_99999.jsonl').write_bytes(b'\0\x05\x16\x07')
    (folder / 'more.jsonl.gz').write_bytes(b'')
    os.mkfifo(folder / 'pipe.jsonl')
    index = load_index(opened(folder), tmp_path / 'index')
    assert len(index) == 2
    assert index.passed_over == [
        ('list of records, hidden', 1, '._1.000_99999.jsonl'),
        ('list of records, compressed or not a regular file', 2, 'more.jsonl.gz'),
        ('empty line', 1, '1.000_99999.jsonl line 2'),
    ]


def test_a_pipe_a_folder_and_a_large_image_are_broken_records(tmp_path):
    folder = tmp_path / 'data'
    folder.mkdir()
    os.mkfifo(folder / 'pipe.jpg')
    (folder / 'large.png').write_bytes(encoded(40, 50, kind='PNG'))
    (folder / 'small.png').write_bytes(encoded(20, 50, kind='PNG'))
    names = ('pipe.jpg', '.', 'large.png', 'small.png')
    (folder / 'a.jsonl').write_text('\n'.join(line(name, text='a cat') for name in names))
    index = load_index(opened(folder), tmp_path / 'index', max_pixels=1000)
    pipe, itself, large = (reason for _, reason in index.broken)
    assert pipe.endswith('pipe.jpg: not a regular file') and itself.endswith('not a regular file')
    assert large == ('image of 50 x 40 = 2000 pixels, more than data.max_image_pixels 1000')
    assert index.sizes.tolist() == [[0, 0]] * 3 + [[20, 50]]
    assert len(load_index(opened(folder), tmp_path / 'index').broken) == 2  # another index
