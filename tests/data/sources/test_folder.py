"""Folders of images without captions, crops sampled from them, and the photographs of packages."""

import os
import pathlib

import numpy as np
import pytest
from helpers.data_folders import encoded
from helpers.paths import script
from PIL import Image

from infinity_jax.data.config import DataConfig, SourceConfig
from infinity_jax.data.passed_over import PassedOver
from infinity_jax.data.pipeline import training_batches
from infinity_jax.data.sources.folder import FolderSource, image_paths
from infinity_jax.errors import UserError


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """20 images of one colour each, whose red tells which, half of them in a folder below."""
    folder = tmp_path_factory.mktemp('images')
    (folder / 'below').mkdir()
    for i in range(20):
        where = folder / ('below' if i % 2 else '') / f'{i:02}.{"PNG" if i % 3 else "webp"}'
        Image.new('RGB', (40 + i, 48), (10 * i, 0, 0)).save(where, lossless=True)
    (folder / 'notes.txt').write_text('no image')
    return folder


def config(folder, tmp_path, **fields):
    sources = (SourceConfig('folder', str(folder)),)
    return DataConfig(sources=sources, image_size=32, index_dir=str(tmp_path), **fields)


def shown(data, split, batches=20):
    iterator = training_batches(data, split=split, batch_size=4)
    taken = [next(iterator) for _ in range(batches)]
    iterator.close()
    assert all(text == '' for batch in taken for text in batch.captions)
    return {int(red) for batch in taken for red in batch.pixels_BYX3[:, 16, 16, 0]}


def test_images_in_subfolders_are_found_and_named_by_path(folder):
    source = FolderSource.open(SourceConfig('folder', str(folder)))
    locations = list(source.locations())
    assert len(locations) == 20 == len(source.files())
    assert [source.record_name(location) for location in locations[:2]] == ['00.webp', '02.PNG']
    assert source.record_name(locations[-1]) == 'below/19.PNG'
    assert source.read(locations[0]).captions is None
    with source.read(locations[-1]).open_image() as stream:
        assert stream.read() == (folder / 'below' / '19.PNG').read_bytes()


def test_hidden_files_are_no_images_and_linked_folders_are_read_once(tmp_path):
    top, other = tmp_path / 'top', tmp_path / 'other'
    for path in ('b/1.jpg', 'b/._1.jpg', '.cache/2.jpg', '__MACOSX/3.jpg', 'notes.txt', 'c.GIF'):
        (top / path).parent.mkdir(parents=True, exist_ok=True)
        (top / path).write_bytes(b'')
    other.mkdir()
    (other / '4.tif').write_bytes(b'')
    (top / 'a').symlink_to(top / 'b')  # read already
    (top / 'd').symlink_to(other)
    (other / 'up').symlink_to(top)  # a circle
    (top / 'e').symlink_to(other)
    (top / 'lost.png').symlink_to(tmp_path / 'nowhere')
    os.mkfifo(top / 'pipe.png')
    passed_over = PassedOver()
    found = [path.relative_to(top).as_posix() for path in image_paths(top, passed_over)]
    assert found == ['b/1.jpg', 'c.GIF', 'd/4.tif']
    assert sorted(passed_over.rows) == [
        ('file of ending .txt', 1, 'notes.txt'),
        ('hidden file', 1, 'b/._1.jpg'),
        ('hidden folder', 2, '.cache'),
        ('not a regular file', 2, 'lost.png'),
    ]


def test_whole_images_are_held_out(folder, tmp_path):
    data = config(folder, tmp_path, held_out_share=0.3, smallest_crop=0.5)
    trained, held_out = shown(data, 'train'), shown(data, 'held_out')
    assert not trained & held_out and len(trained | held_out) == 20 and len(held_out) > 2


def test_crops_follow_from_the_seed(tmp_path):
    (tmp_path / 'images').mkdir()
    (tmp_path / 'images' / 'a.png').write_bytes(encoded(96, 128, kind='PNG'))
    data = config(tmp_path / 'images', tmp_path, held_out_share=0.0, smallest_crop=0.25)

    def take(seed, data=data):
        iterator = training_batches(data, batch_size=1, seed=seed)
        taken = [next(iterator).pixels_BYX3 for _ in range(3)]
        iterator.close()
        return taken

    first, again, other = take(0), take(0), take(1)
    assert np.array_equal(first, again)
    assert not np.array_equal(first[0], first[1]) and not np.array_equal(first[0], other[0])
    whole = take(0, config(tmp_path / 'images', tmp_path, held_out_share=0.0))
    assert np.array_equal(whole[0], whole[1])


def test_a_folder_without_images_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match='no images in there'):
        FolderSource.open(SourceConfig('folder', str(tmp_path)))


def test_a_share_that_leaves_no_crop_is_a_user_error():
    with pytest.raises(UserError, match='data.smallest_crop is 0.0; wanted above 0'):
        DataConfig(smallest_crop=0.0)


def test_photographs_are_collected_from_several_folders(tmp_path, monkeypatch):
    photographs = {'a/nature': ('x.jpg',), 'b': ('Kite/contents/1.png',)}
    build_photographs = script('build_photographs')
    monkeypatch.setattr(build_photographs, 'PHOTOGRAPHS', photographs)
    for root, name, kind in (('one', 'a/nature/x.jpg', 'JPEG'), ('two', 'b/Kite/contents/1.png',
                                                                'PNG')):  # fmt: skip
        path = pathlib.Path(tmp_path / root / name)
        path.parent.mkdir(parents=True)
        path.write_bytes(encoded(60, 90, kind=kind))
    roots = [tmp_path / 'one', tmp_path / 'two']
    assert build_photographs.build(tmp_path / 'out', roots, edge=30) == 2
    sizes = {path.name: Image.open(path).size for path in (tmp_path / 'out').iterdir()}
    assert sizes == {'x.png': (45, 30), 'Kite.png': (45, 30)}
    with pytest.raises(UserError, match='1 photographs are in none .*, the first a/nature/x.jpg'):
        build_photographs.build(tmp_path / 'out', roots[1:])
