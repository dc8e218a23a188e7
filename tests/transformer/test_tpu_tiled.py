"""Products in equal blocks are the same products, and equal ones."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from infinity_jax.transformer import layers as linear_module
from infinity_jax.transformer import tpu as equal_blocks
from infinity_jax.transformer.layers import linear
from infinity_jax.transformer.tpu import ROWS, pays, tiled


def normal(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def products(function, *args):
    """Shapes of the matrix products in the program of a function."""
    return set(re.findall(r'dot_general .*', jax.jit(function).lower(*args).as_text()))


@pytest.mark.parametrize('shape', [(2, 8), (2, 150, 8), (1, ROWS, 8)])
@pytest.mark.parametrize('features', [5, 300, 512])
def test_blocks_make_the_same_product(shape, features):
    x, kernel = normal(*shape), normal(8, features)
    wanted = jnp.matmul(x, kernel)
    found = tiled(jnp.matmul, x, kernel)
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_products_of_all_lengths_and_widths_are_equal():
    def blocks(rows, features):
        run = lambda x, kernel: tiled(jnp.matmul, x, kernel)
        return products(run, normal(rows, 8), normal(8, features))

    assert blocks(2, 512) == blocks(700, 512) == blocks(700, 768)
    assert len(blocks(700, 512)) == 1


def test_a_layer_in_blocks_is_the_same_layer(monkeypatch):
    layer, x = linear(512, (None, None), 0.1, jnp.float32), normal(2, 150, 8)
    variables = {'params': {'kernel': normal(8, 512), 'bias': normal(512)}}

    def run(x, **options):
        return layer.apply(variables, x, **options)

    wanted = run(x)
    assert products(lambda x: run(x, in_blocks=True), x) == products(run, x)
    monkeypatch.setattr(linear_module, 'pays', lambda: True)
    np.testing.assert_allclose(run(x, in_blocks=True), wanted, rtol=1e-5, atol=1e-5)
    assert products(lambda x: run(x, in_blocks=True), x) != products(run, x)


def test_blocks_are_for_one_tpu_chip(monkeypatch):
    assert not pays()
    monkeypatch.setattr(equal_blocks, 'target_platform', lambda: 'tpu')
    assert pays()
    device = AbstractDevice(device_kind='some', num_cores=1, platform='tpu')
    for chips in (1, 2):
        with jax.sharding.use_abstract_mesh(
            AbstractMesh((chips,), ('data',), abstract_device=device)
        ):
            assert pays() == (chips == 1)
