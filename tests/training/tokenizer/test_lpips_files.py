"""VGG-16 and the LPIPS heads from files: torchvision's names in, one line for what is wrong."""

import numpy as np
import pytest
import safetensors.numpy
from helpers.lpips_weights import head_tensors, vgg_tensors
from helpers.torch_files import write_legacy_pth, write_pth

from infinity_jax.errors import UserError
from infinity_jax.training.tokenizer import lpips, lpips_files
from infinity_jax.training.tokenizer.lpips_files import (
    HEAD_NAME,
    load_lpips,
    lpips_or_none,
)


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp('lpips')
    vgg, heads = folder / 'vgg16.safetensors', folder / 'heads.safetensors'
    safetensors.numpy.save_file(vgg_tensors(), vgg)
    safetensors.numpy.save_file(head_tensors(), heads)
    return str(vgg), str(heads)


def test_reads_convolutions_and_heads(files):
    params = load_lpips(*files)
    assert params['vgg']['4_2']['kernel'].shape == (3, 3, 512, 512)
    last = vgg_tensors()['features.28.weight']
    assert (params['vgg']['4_2']['kernel'] == last.transpose(2, 3, 1, 0)).all()
    assert [head.shape for head in params['heads']] == [(64,), (128,), (256,), (512,), (512,)]


@pytest.mark.parametrize('write', [write_pth, write_legacy_pth])
def test_reads_what_torch_saved(tmp_path, monkeypatch, write):
    for module in (lpips, lpips_files):
        monkeypatch.setattr(module, 'BLOCKS', tuple((4,) * len(b) for b in lpips.BLOCKS))
    vgg = vgg_tensors.__wrapped__()
    heads = {HEAD_NAME.format(i): np.full((1, 4, 1, 1), i, np.float32) for i in range(5)}
    write(tmp_path / 'vgg16.pth', vgg)
    write(tmp_path / 'vgg.pth', heads)
    params = load_lpips(tmp_path / 'vgg16.pth', tmp_path / 'vgg.pth')
    for index, name in ((0, '0_0'), (28, '4_2')):
        kernel = vgg[f'features.{index}.weight'].transpose(2, 3, 1, 0)
        np.testing.assert_array_equal(params['vgg'][name]['kernel'], kernel)
    np.testing.assert_array_equal(params['heads'], np.arange(5)[:, None] * np.ones(4))


def test_wrong_files_are_one_line(files, tmp_path):
    short = dict(vgg_tensors())
    del short['features.0.bias']
    short['features.2.weight'] = np.zeros((64, 64, 1, 1), np.float32)
    safetensors.numpy.save_file(short, tmp_path / 'short.safetensors')
    with pytest.raises(UserError) as caught:
        load_lpips(tmp_path / 'short.safetensors', files[1])
    assert 'features.0.bias (64,) is absent' in str(caught.value)
    assert 'features.2.weight (64, 64, 3, 3) is (64, 64, 1, 1)' in str(caught.value)
    with pytest.raises(UserError) as caught:  # files swapped
        load_lpips(files[0], files[0])
    assert all(HEAD_NAME.format(i) in str(caught.value) for i in range(5))


def test_without_files_the_term_is_off_and_says_so(capsys):
    assert lpips_or_none(1.0, '', '') is None
    said = capsys.readouterr().out
    assert 'perceptual term off' in said and said.count('\n') == 1
    assert lpips_or_none(0.0, '', '') is None
    assert capsys.readouterr().out == ''
    with pytest.raises(UserError, match='wants both'):
        lpips_or_none(1.0, 'vgg16.pth', '')


def test_files_for_a_term_that_is_off_are_an_error():
    with pytest.raises(UserError, match=r"losses\.perceptual is 0, .*'vgg16\.pth'.* set losses"):
        lpips_or_none(0.0, 'vgg16.pth', 'vgg.pth')
