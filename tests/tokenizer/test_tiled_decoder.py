"""The decoder in blocks of rows equals the plain one."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny import QUICK_COMPILE, TOKENIZER, tokenizer_variables

from infinity_jax.config import TokenizerConfig
from infinity_jax.runtime.accelerators import peak_of
from infinity_jax.sharding import MeshConfig, batch_sharding, in_mesh, make_mesh, shardings_of
from infinity_jax.tokenizer import tiled_decoder
from infinity_jax.tokenizer.autoencoder import Autoencoder
from infinity_jax.tokenizer.tiled_decoder import (
    RowDecoder,
    block_rows,
    convolve,
    convolve_rows,
    decode,
    decoding_bytes,
    widest_map,
)

UNSHUFFLED = dataclasses.replace(TOKENIZER, unshuffle=2, channel_multipliers=(1, 2, 2))
DEEPER = dataclasses.replace(TOKENIZER, decoder_blocks=TOKENIZER.residual_blocks + 2)
POINTWISE = TokenizerConfig(8, 16, (1,), unshuffle=4, norm_groups=4, kernel_size=1)
CASES = [
    (TOKENIZER, (4, 3)),
    (TOKENIZER, (3, 5)),
    (UNSHUFFLED, (2, 3)),
    (DEEPER, (3, 2)),
    (POINTWISE, (4, 3)),
]


def features(config, grid, batch=2):
    rng = np.random.default_rng(0)
    return rng.standard_normal((batch, *grid, config.bits)).astype(np.float32)


@functools.cache
def plain(config, grid):
    run = jax.jit(
        lambda variables, x: Autoencoder(config).apply(variables, x, method='decode'),
        compiler_options=QUICK_COMPILE,
    )
    return np.asarray(run(tokenizer_variables(config), features(config, grid)))


def test_each_device_of_a_mesh_decodes_its_own_images(monkeypatch):
    monkeypatch.setattr(tiled_decoder, 'WHOLE_BYTES', 2**10)  # blocks of rows
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=1), jax.devices()[:4])
    shapes = jax.eval_shape(
        Autoencoder(TOKENIZER).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3))
    )
    variables = jax.device_put(tokenizer_variables(TOKENIZER), shardings_of(shapes, mesh))
    images = jax.device_put(features(TOKENIZER, (4, 3), batch=4), batch_sharding(mesh))
    run = jax.jit(functools.partial(decode, Autoencoder(TOKENIZER)), compiler_options=QUICK_COMPILE)
    compiled = in_mesh(mesh, run.lower)(variables, images).compile()
    found = compiled(variables, images)
    assert found.sharding.spec[0] == ('data', 'fsdp')
    alone = run(tokenizer_variables(TOKENIZER), features(TOKENIZER, (4, 3), batch=4))
    np.testing.assert_allclose(np.asarray(found), np.asarray(alone), atol=1e-5)
    text = compiled.as_text()
    assert 'all-gather' in text and 'reduce-scatter' not in text and 'all-to-all' not in text


def in_bounds(monkeypatch, config, grid, whole, block):
    """Decoded under small bounds on bytes, and the program's text."""
    monkeypatch.setattr(tiled_decoder, 'WHOLE_BYTES', whole)
    monkeypatch.setattr(tiled_decoder, 'BLOCK_BYTES', block)
    run = jax.jit(functools.partial(decode, Autoencoder(config)), compiler_options=QUICK_COMPILE)
    lowered = run.lower(tokenizer_variables(config), features(config, grid))
    found = lowered.compile()(tokenizer_variables(config), features(config, grid))
    return np.asarray(found), lowered.as_text()


@pytest.mark.parametrize(('config', 'grid'), CASES, ids=str)
@pytest.mark.parametrize('block', [1, 1500])
def test_blocks_of_rows_equal_the_whole_image(monkeypatch, config, grid, block):
    found, text = in_bounds(monkeypatch, config, grid, 0, block)
    wanted = plain(config, grid)
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())
    assert 'while' in text


def test_memory_without_values_is_never_read(monkeypatch):
    monkeypatch.setattr(tiled_decoder.jax.lax, 'empty', lambda *of: np.full(*of[:1], np.nan, of[1]))
    found, _ = in_bounds(monkeypatch, UNSHUFFLED, (2, 3), 0, 1)
    wanted = plain(UNSHUFFLED, (2, 3))
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())


def test_norms_are_exact_far_from_zero_and_read_no_spare_row():
    rng = np.random.default_rng(0)
    x = 300 + rng.standard_normal((1, 12, 7, 8)).astype(np.float32)
    norm = {'scale': np.ones(8, np.float32), 'bias': np.zeros(8, np.float32)}
    groups = x.astype(np.float64).reshape(12, 7, 4, 2)
    normed = (groups - groups.mean((0, 1, 3), keepdims=True)) / groups.std((0, 1, 3), keepdims=True)
    wanted = (normed / (1 + np.exp(-normed))).reshape(x.shape)
    spare = np.full((1, 1, 7, 8), np.nan, np.float32)
    decoder = RowDecoder(POINTWISE, np.float32, 'float32', max_bytes=1)
    activate = decoder._activation(norm, np.concatenate([spare, x, spare], axis=1))
    np.testing.assert_allclose(activate(x), wanted, atol=1e-4)


@pytest.mark.parametrize('size', [1, 3])
def test_row_by_row_is_the_same_convolution(size):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 6, 7, 4)).astype(np.float32)
    kernel = rng.standard_normal((size, size, 4, 5)).astype(np.float32)
    wanted = convolve(x, kernel)
    assert wanted.shape == (2, 7 - size, 7, 5)
    np.testing.assert_allclose(convolve_rows(x, kernel), wanted, atol=1e-5 * np.abs(wanted).max())


def test_images_one_by_one_equal_the_batch(monkeypatch):
    one = widest_map(TOKENIZER, 8, 6) * 4
    found, text = in_bounds(monkeypatch, TOKENIZER, (4, 3), one, 1)
    wanted = plain(TOKENIZER, (4, 3))
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())
    assert text.count('stablehlo.while') == 1


def test_small_images_take_the_plain_decoder(monkeypatch):
    found, text = in_bounds(monkeypatch, TOKENIZER, (4, 3), 2**28, 1)
    assert (found == plain(TOKENIZER, (4, 3))).all() and 'while' not in text


def test_what_is_large():
    released = TokenizerConfig()
    assert widest_map(released, 1024, 1024) * 4 == 4 * 256 * 1024**2 > tiled_decoder.WHOLE_BYTES
    assert widest_map(released, 256, 256) * 4 < tiled_decoder.WHOLE_BYTES


def test_a_gpu_with_much_memory_decodes_larger_images_whole(monkeypatch):
    monkeypatch.setattr(tiled_decoder, 'target_platform', lambda: 'gpu')
    image = widest_map(TokenizerConfig(), 1024, 1024) * 4
    for kind, whole in (('NVIDIA H100 80GB HBM3', True), ('NVIDIA L4', False), ('new', False)):
        monkeypatch.setattr(tiled_decoder, 'target_peak', lambda kind=kind: peak_of(kind))
        assert (image <= tiled_decoder.whole_bytes()) == whole
        maps = decoding_bytes(TokenizerConfig(), 1, 1024, 1024) / image
        assert maps == (4 if whole else pytest.approx(3.25))


def test_rows_divide_the_height():
    assert block_rows(1024, 2**20, 2**26) == 64
    assert block_rows(1040, 2**20, 2**26) == 52
    assert block_rows(7, 100, 300) == 1 and block_rows(7, 100, 700) == 7
    assert block_rows(64, 2**30, 2**26) == 1


def test_on_a_tpu_large_maps_are_several_blocks():
    for size, channels in ((128, 512), (256, 512), (512, 256), (1024, 128)):
        row_bytes = size * channels * 4
        assert 1 < size // block_rows(size, row_bytes, tiled_decoder.TPU_BLOCK_BYTES) <= 32
