"""The tokenizer's evaluation on random weights: figures by hand, files left, errors in one line."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tiny import tokenizer_variables

from infinity_jax import cli
from infinity_jax.config import TokenizerConfig, UserError
from infinity_jax.evaluation.tokenizer import (
    NEAR_ZERO,
    evaluate_tokenizer,
    load_pictures,
    measure,
    scale_figures,
)
from infinity_jax.pictures import from_uint8
from infinity_jax.scales import ScaleSchedule
from infinity_jax.tokenizer.autoencoder import Autoencoder
from infinity_jax.tokenizer.losses import psnr
from infinity_jax.tokenizer.quantizer import quantize, total_from_bits
from infinity_jax.weights.model_folder import ModelBundle, save_model

GRIDS = ((1, 1), (2, 2), (4, 4))
TOKENIZER = TokenizerConfig(
    bits=4, base_channels=8, channel_multipliers=(1,), residual_blocks=1, unshuffle=4, norm_groups=4
)
PARAMS = tokenizer_variables(TOKENIZER)['params']


@pytest.fixture
def bundle():
    return ModelBundle(
        tokenizer_config=TOKENIZER,
        tokenizer_params=PARAMS,
        schedule=ScaleSchedule.free(GRIDS),
        extra={'run': {'data': {'subset': 'starter'}}},
    )


@pytest.fixture
def folder(bundle, tmp_path):
    save_model(tmp_path / 'model', bundle)
    return tmp_path / 'model'


def test_leaves_table_strip_and_plot(folder, tmp_path, capsys):
    out = tmp_path / 'out'
    cli.main(['evaluate', 'tokenizer', '--checkpoint', str(folder), '--count', '3', '--out',
              str(out)])  # fmt: skip
    results = json.loads((out / 'tokenizer.json').read_text())
    assert results['pictures'] == 3 and results['grids'] == [list(grid) for grid in GRIDS]
    assert len(results['scales']) == 3 and results['scales'][-1]['psnr'] == results['psnr']
    assert results['lpips'] is None and np.isfinite(results['ssim'])
    strip = Image.open(out / 'tokenizer_strip.png')
    assert strip.width > 4 * 128 and strip.height > 3 * 128
    assert Image.open(out / 'tokenizer_bits.png').width > 500
    said = capsys.readouterr().out
    assert 'PSNR' in said and '4x4' in said


def test_figures_equal_a_plain_computation(bundle):
    pictures = load_pictures('emoji', 5, 16, bundle)
    sums, strip = measure(bundle, GRIDS, None, pictures)
    target = from_uint8(jnp.asarray(pictures))
    model, variables = Autoencoder(TOKENIZER), {'params': PARAMS}
    features = model.apply(variables, target, method=Autoencoder.encode)
    bits = quantize(features, GRIDS).bits
    for k in range(3):
        ones = np.asarray(bits[k]).reshape(-1, 4).mean(0)
        np.testing.assert_allclose(sums['ones_Kd'][k], ones, atol=1e-6)
    blank = tuple(jnp.zeros((5, *grid, 4), bool) for grid in GRIDS[2:])
    # Zeros stand for codes of −1/√d: taken away again, the first two scales are left.
    two = total_from_bits((*bits[:2], *blank)) + 0.5
    decoded = model.apply(variables, two, method=Autoencoder.decode)
    assert sums['psnr_K'][1] == pytest.approx(float(psnr(decoded, target)), rel=1e-4)
    near = np.mean(np.abs(np.asarray(features - two)) < NEAR_ZERO / 2)
    assert sums['near_zero_K'][2] == pytest.approx(near, abs=2e-3)
    assert strip.shape == (5, 4, 16, 16, 3) and (strip[:, 0] == pictures).all()


def test_scale_figures_by_hand():
    figures = scale_figures((2, 2), np.array([0.5, 0.25, 0.0, 0.6]), 0.125, 20.0)
    entropy = (1 + 0.8112781 + 0 + 0.9709506) / 4
    assert figures['bit_entropy'] == pytest.approx(entropy, abs=1e-6)
    assert (figures['least_used'], figures['most_used'], figures['balanced']) == (0.0, 0.6, 0.5)
    assert figures['near_zero'] == 0.125


def test_pictures_of_a_folder_cover_the_square_and_are_cut_at_the_centre(bundle, tmp_path):
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 200  # the middle third is what stays
    Image.fromarray(wide).save(tmp_path / 'b.png')
    Image.fromarray(wide[..., 0]).save(tmp_path / 'a.png')  # grey
    (tmp_path / 'notes.txt').write_text('no picture')
    pictures = load_pictures(str(tmp_path), 9, 16, bundle)
    assert pictures.shape == (2, 16, 16, 3) and (pictures[:, :, 2:14] > 150).all()


def test_frechet_distance_of_features_in_a_file(folder, tmp_path):
    rows = np.random.default_rng(0).standard_normal((20, 4))
    np.savez(tmp_path / 'f.npz', originals=rows, reconstructions=rows + 1)
    results = evaluate_tokenizer(
        folder, count=1, features=str(tmp_path / 'f.npz'), out=tmp_path / 'out'
    )
    assert results['frechet_distance'] == pytest.approx(4)


def test_errors_are_one_line(folder, tmp_path):
    np.savez(tmp_path / 'f.npz', originals=np.zeros((3, 2)))
    (tmp_path / 'broken').mkdir()
    (tmp_path / 'broken' / 'x.png').write_text('no picture')
    for options, message in (
        ({'count': 0}, 'count is 0'),
        ({'data': '/nowhere'}, 'no such folder'),
        ({'data': str(folder)}, 'no pictures there'),
        ({'data': str(tmp_path / 'broken')}, 'not a readable picture'),
        ({'size': 64}, 'codes pictures of 16 x 16'),
        ({'features': str(tmp_path / 'f.npz')}, 'wanted .npz with originals'),
        ({'vgg': 'vgg16.pth'}, 'wants both'),
    ):
        with pytest.raises(UserError, match=message) as caught:
            evaluate_tokenizer(folder, out=tmp_path, **options)
        assert '\n' not in str(caught.value)
