import collections
import re
import zipfile

import numpy as np
import pytest

from infinity_jax.emoji import artwork
from infinity_jax.emoji.scene_sampling import candidates
from infinity_jax.errors import UserError


def test_subsets_are_large_enough_and_named_once():
    everything, starter = artwork.subset('all'), artwork.subset('starter')
    assert len(everything) >= 1200
    assert 64 <= len(starter) <= 100
    assert set(starter) <= set(everything)
    for chosen in (everything, starter):
        assert max(collections.Counter(each.name for each in chosen).values()) == 1
        assert max(collections.Counter(each.file for each in chosen).values()) == 1


def test_unseen_emoji_are_not_those_of_the_demo():
    unseen = {each.name for each in artwork.subset('unseen')}
    assert len(unseen) == 24
    single, in_scenes = (each.name for each in artwork.subset('demo')), candidates('starter')
    assert not unseen & {*single, *in_scenes}


def test_names_are_lower_case_words():
    for each in artwork.subset('all'):
        assert re.fullmatch(r"[a-z][a-z'-]*( [a-z][a-z'-]*)*", each.name), each.name
        assert each.article in ('', 'a'), each.name


def test_starter_has_no_clocks():
    assert not [each.name for each in artwork.subset('starter') if 'clock' in each.name]


def test_zip_holds_one_image_for_each_name_and_images_differ():
    with zipfile.ZipFile(artwork.ARTWORK) as archive:
        assert sorted(archive.namelist()) == sorted(f'{e.file}.png' for e in artwork.subset('all'))
        checksums = [info.CRC for info in archive.infolist()]
    assert len(set(checksums)) == len(checksums)


def test_sprite_is_premultiplied_and_shared():
    sprite = artwork.sprite('red apple', 56)
    assert sprite.shape == (56, 56, 4) and sprite.dtype == np.uint8
    assert (sprite[..., :3] <= sprite[..., 3:]).all()
    assert sprite[0, 0, 3] == 0 and sprite[28, 28, 3] == 255
    assert sprite[28, 28, 0] > 150 > sprite[28, 28, 2]  # an apple is red
    assert artwork.sprite('red apple', 56) is sprite


def test_unknown_names_are_user_errors():
    with pytest.raises(UserError, match="'blue appel'"):
        artwork.find('blue appel')
    with pytest.raises(UserError, match='starter, demo, unseen, all'):
        artwork.subset('everything')


@pytest.mark.parametrize('damage', ['truncated image', 'missing image', 'no zip'])
def test_bad_artwork_is_a_user_error_that_names_the_file(tmp_path, damage):
    archive = tmp_path / 'artwork.zip'
    with zipfile.ZipFile(artwork.ARTWORK) as good, zipfile.ZipFile(archive, 'w') as bad:
        if damage == 'truncated image':
            bad.writestr('1f34e.png', good.read('1f34e.png')[:200])
    if damage == 'no zip':
        archive.write_bytes(b'not a zip')
    with pytest.raises(UserError, match='artwork.zip') as error:
        artwork.read_image(archive, '1f34e')
    assert damage == 'no zip' or '1f34e.png' in str(error.value)
    assert '\n' not in str(error.value)
