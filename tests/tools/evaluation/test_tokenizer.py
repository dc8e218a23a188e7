"""Evaluation of a tokenizer with random weights: figures, files, one-line errors."""

import dataclasses
import json
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.lpips_weights import narrow_files
from helpers.models import changed, model_of
from helpers.stride4 import GRIDS, PARAMS, TOKENIZER
from helpers.tiny import tokenizer_variables
from PIL import Image

from infinity_jax import cli
from infinity_jax.errors import UserError
from infinity_jax.images import from_uint8, psnr
from infinity_jax.scales import ScaleSchedule
from infinity_jax.tokenizer.autoencoder import Autoencoder
from infinity_jax.tokenizer.quantizer import quantize, total_from_bits
from infinity_jax.tools.evaluation import tokenizer as evaluation
from infinity_jax.tools.evaluation.image_metrics import edge_energy
from infinity_jax.tools.evaluation.tokenizer import (
    NEAR_ZERO,
    evaluate_tokenizer,
    figures,
    measure,
    scale_figures,
)
from infinity_jax.tools.evaluation.tokenizer_images import (
    ImageSet,
    emoji_images,
    folder_images,
)
from infinity_jax.training.tokenizer.lpips import lpips
from infinity_jax.training.tokenizer.lpips_files import load_lpips
from infinity_jax.weights.model_folder import save_model


@pytest.fixture
def loaded():
    return model_of(
        tokenizer_config=TOKENIZER,
        tokenizer_params=PARAMS,
        schedule=ScaleSchedule.free(GRIDS),
        extra={'run': {'data': {'subset': 'starter'}}},
    )


@pytest.fixture
def folder(loaded, tmp_path):
    save_model(tmp_path / 'run' / 'model', loaded)
    return tmp_path / 'run' / 'model'


@jax.jit
def decoded(images):
    """Pixels of images, uint8 (B, Y, X, 3), through the tokenizer and back."""
    model, variables = Autoencoder(TOKENIZER), {'params': PARAMS}
    features = model.apply(variables, from_uint8(images), method=Autoencoder.encode)
    total = quantize(features, GRIDS).total_Bhwd
    return model.apply(variables, total, method=Autoencoder.decode)


def noise(count):
    images = np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), np.uint8)
    return ImageSet(count, 16, lambda number: images[number].copy())


def test_leaves_table_strip_and_plot(folder, tmp_path, capsys):
    out = tmp_path / 'out'
    cli.main(['evaluate', 'tokenizer', '--checkpoint', str(folder), '--count', '3', '--out',
              str(out)])  # fmt: skip
    results = json.loads((out / 'tokenizer.json').read_text())
    assert results['images'] == 3 and results['grids'] == [list(grid) for grid in GRIDS]
    assert len(results['scales']) == 3 and results['scales'][-1]['psnr'] == results['psnr']
    assert results['lpips'] is None and np.isfinite(results['ssim'])
    strip = Image.open(out / 'tokenizer_strip.png')
    assert strip.width > 4 * 128 and strip.height > 3 * 128
    assert Image.open(out / 'tokenizer_bits.png').width > 500
    said = capsys.readouterr().out
    assert 'PSNR' in said and '4x4' in said and f'{out}: tokenizer.json' in said
    assert results['subset'] == 'starter'  # of its training


def test_figures_equal_a_plain_computation(loaded):
    held_out = emoji_images('starter', 5, 16)
    means, strip = measure(loaded, GRIDS, None, held_out)
    (images,) = held_out.batches(5)
    target = from_uint8(jnp.asarray(images))
    model, variables = Autoencoder(TOKENIZER), {'params': PARAMS}
    features = model.apply(variables, target, method=Autoencoder.encode)
    bits = quantize(features, GRIDS).bits
    for k in range(3):
        ones = np.asarray(bits[k]).reshape(-1, 4).mean(0)
        np.testing.assert_allclose(means.ones_Kd[k], ones, atol=1e-6)
    blank = tuple(jnp.zeros((5, *grid, 4), bool) for grid in GRIDS[2:])
    # Zeros stand for codes of −1/√d: taken away again, the first two scales are left.
    two = total_from_bits((*bits[:2], *blank)) + 0.5
    decoded = model.apply(variables, two, method=Autoencoder.decode)
    assert means.psnr_K[1] == pytest.approx(float(psnr(decoded, target)), rel=1e-4)
    near = np.mean(np.abs(np.asarray(features - two)) < NEAR_ZERO / 2)
    assert means.near_zero_K[2] == pytest.approx(near, abs=2e-3)
    assert strip.shape == (5, 4, 16, 16, 3) and (strip[:, 0] == images).all()
    last = model.apply(variables, total_from_bits(bits), method=Autoencoder.decode)
    ratio = float(edge_energy(last).mean() / edge_energy(target).mean())
    assert figures(means, GRIDS)['edge_energy'] == pytest.approx(ratio, rel=1e-4)


def test_scale_figures_by_hand():
    row = scale_figures((2, 2), np.array([0.5, 0.25, 0.0, 0.6]), 0.125, 20.0)
    entropy = (1 + 0.8112781 + 0 + 0.9709506) / 4
    assert row['bit_entropy'] == pytest.approx(entropy, abs=1e-6)
    assert (row['least_used'], row['most_used'], row['balanced']) == (0.0, 0.6, 0.5)
    assert row['near_zero'] == 0.125


def test_images_of_a_folder_cover_the_square_and_are_cut_at_the_centre(tmp_path):
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 200  # the middle third is what stays
    Image.fromarray(wide).save(tmp_path / 'b.png')
    Image.fromarray(wide[..., 0]).save(tmp_path / 'a.png')  # grey
    (tmp_path / 'notes.txt').write_text('no image')
    (images,) = folder_images(str(tmp_path), 9, 16).batches(9)
    assert images.shape == (2, 16, 16, 3) and (images[:, :, 2:14] > 150).all()


def test_images_stream_and_the_bar_counts_them(loaded, monkeypatch):
    bars, held, most = [], [], []

    class Bar(evaluation.tqdm):
        def __init__(self, **options):
            super().__init__(**options)
            bars.append((options, self))

        def update(self, n=1):
            self.counted = getattr(self, 'counted', 0) + n

    def keep(start, originals, reconstructions):
        held.append(weakref.ref(originals))
        most.append(sum(ref() is not None for ref in held))
        assert start == 4 * (len(held) - 1) and reconstructions.shape == originals.shape

    whole, _ = measure(loaded, GRIDS, None, noise(22))
    monkeypatch.setattr(evaluation, 'BATCH_PIXELS', 4 * 16**2)
    monkeypatch.setattr(evaluation, 'tqdm', Bar)
    means, strip = measure(loaded, GRIDS, None, noise(22), keep)
    assert max(most) <= 2 and len(held) == 6 and len(strip) == 8
    ((options, bar),) = bars
    assert options['total'] == bar.counted == 22 and 'images' in options['unit']
    for found, value in zip(jax.tree.leaves(means), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(found, value, rtol=1e-4)  # the last batch, of 2, counts as 2


def test_lpips_is_that_of_the_files(folder, tmp_path, monkeypatch):
    vgg, heads = narrow_files(tmp_path, monkeypatch)
    monkeypatch.setattr(evaluation, 'BATCH_PIXELS', 16**2)  # one at a time
    results = evaluate_tokenizer(folder, count=3, vgg=vgg, heads=heads, out=tmp_path / 'out')
    (images,) = emoji_images('starter', 3, 16).batches(3)
    ours = jnp.clip(decoded(images), -1, 1)
    wanted = jax.jit(lpips)(load_lpips(vgg, heads), ours, from_uint8(jnp.asarray(images)))
    assert results['lpips'] == pytest.approx(float(wanted.mean()), rel=1e-4)
    assert wanted.mean() > 0.01


def test_saves_pairs_of_images_as_they_were_coded(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluation, 'BATCH_PIXELS', 2 * 16**2)
    arguments = ['evaluate', 'tokenizer', '--checkpoint', str(folder.parent), '--count', '5']
    cli.main([*arguments, '--subset', 'demo', '--save', str(tmp_path / 'pairs')])
    (images,) = emoji_images('demo', 5, 16).batches(5)
    names = [f'{number:06}.png' for number in range(5)]
    for kind, wanted, close in (('gt', images, 0), ('pred', decoded(images), 1)):
        paths = sorted((tmp_path / 'pairs' / kind).iterdir())
        assert [path.name for path in paths] == names
        found = np.stack([np.asarray(Image.open(path)) for path in paths]).astype(int)
        if kind == 'pred':
            wanted = np.round((np.clip(wanted, -1, 1) + 1) * 127.5)
        assert np.abs(found - wanted).max() <= close and found.std() > 5
    said = capsys.readouterr().out
    assert str(tmp_path / 'pairs') in said
    results = json.loads((tmp_path / 'run' / 'evaluation' / 'tokenizer.json').read_text())
    assert results['subset'] == 'demo' and str(tmp_path / 'run' / 'evaluation') in said
    with pytest.raises(UserError, match='gt has files in it; name a new folder'):
        evaluate_tokenizer(folder, save=tmp_path / 'pairs', out=tmp_path)


def test_frechet_distance_says_what_it_is_of(folder, tmp_path, capsys):
    rows = np.random.default_rng(0).standard_normal((3, 4))
    np.savez(tmp_path / 'f.npz', originals=rows, reconstructions=rows + 1)
    for count, more in ((3, ''), (2, '; NOT of the 2 images above')):
        results = evaluate_tokenizer(
            folder, count=count, features=str(tmp_path / 'f.npz'), out=tmp_path / 'out'
        )
        assert results['frechet']['distance'] == pytest.approx(4)
        line = 'distance 4.000 by f.npz: 3 originals, 3 reconstructions, 4 features each' + more
        assert f'{line}\n' in capsys.readouterr().out


def test_without_a_schedule_stride_and_size_must_be_released_ones(loaded, tmp_path):
    save_model(tmp_path / 'vae', changed(loaded, schedule=None))
    with pytest.raises(UserError, match='names no grids, .* for stride 16 or 8, not 4; name'):
        evaluate_tokenizer(tmp_path / 'vae')
    config = dataclasses.replace(TOKENIZER, unshuffle=16)
    params = tokenizer_variables(config)['params']
    loaded = changed(loaded, schedule=None, tokenizer_config=config, tokenizer_params=params)
    save_model(tmp_path / 'stride16', loaded)
    with pytest.raises(UserError, match='--size is 100; wanted one of 256, 512'):
        evaluate_tokenizer(tmp_path / 'stride16', size=100)


def test_errors_are_one_line(folder, tmp_path):
    (tmp_path / 'broken').mkdir()
    (tmp_path / 'broken' / 'x.png').write_text('no image')
    for options, message in (
        ({'count': 0}, 'count is 0'),
        ({'data': '/nowhere'}, 'no such folder'),
        ({'data': ''}, "--data '': no such folder"),
        ({'subset': 'nonsense'}, "subset 'nonsense' is unknown"),
        ({'subset': 'demo', 'data': str(tmp_path)}, '--subset demo: is of --data emoji'),
        ({'data': str(folder)}, 'no images in it'),
        ({'data': str(tmp_path / 'broken')}, 'not a readable image'),
        ({'size': 64}, 'codes images of 16 x 16'),
        ({'vgg': 'vgg16.pth'}, 'wants both'),
    ):
        with pytest.raises(UserError, match=message) as caught:
            evaluate_tokenizer(folder, out=tmp_path, **options)
        assert '\n' not in str(caught.value)
