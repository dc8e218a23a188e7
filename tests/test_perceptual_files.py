"""VGG-16 and the LPIPS heads from files: torchvision's names in, one line for what is wrong."""

import numpy as np
import pytest
import safetensors.numpy
from perceptual_weights import head_tensors, vgg_tensors

from infinity_jax.config import UserError
from infinity_jax.weights.perceptual_files import HEAD_NAME, load_perceptual, perceptual_or_none


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp('lpips')
    vgg, heads = folder / 'vgg16.safetensors', folder / 'heads.safetensors'
    safetensors.numpy.save_file(vgg_tensors(), vgg)
    safetensors.numpy.save_file(head_tensors(), heads)
    return str(vgg), str(heads)


def test_reads_convolutions_and_heads(files):
    params = load_perceptual(*files)
    assert params['vgg']['4_2']['kernel'].shape == (3, 3, 512, 512)
    last = vgg_tensors()['features.28.weight']
    assert (params['vgg']['4_2']['kernel'] == last.transpose(2, 3, 1, 0)).all()
    assert [head.shape for head in params['heads']] == [(64,), (128,), (256,), (512,), (512,)]


def test_wrong_files_are_one_line(files, tmp_path):
    short = dict(vgg_tensors())
    del short['features.0.bias']
    short['features.2.weight'] = np.zeros((64, 64, 1, 1), np.float32)
    safetensors.numpy.save_file(short, tmp_path / 'short.safetensors')
    with pytest.raises(UserError) as caught:
        load_perceptual(tmp_path / 'short.safetensors', files[1])
    assert 'features.0.bias (64,) is absent' in str(caught.value)
    assert 'features.2.weight (64, 64, 3, 3) is (64, 64, 1, 1)' in str(caught.value)
    with pytest.raises(UserError, match=HEAD_NAME.format(0)):  # files swapped
        load_perceptual(files[0], files[0])


def test_without_files_the_term_is_off_and_says_so(capsys):
    assert perceptual_or_none(1.0, '', '') is None
    said = capsys.readouterr().out
    assert 'perceptual term off' in said and said.count('\n') == 1
    assert perceptual_or_none(0.0, '', '') is None
    assert capsys.readouterr().out == ''
    with pytest.raises(UserError, match='wants both'):
        perceptual_or_none(1.0, 'vgg16.pth', '')
