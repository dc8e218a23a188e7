"""Tiled products have the values of whole ones, and one program for all shapes."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from infinity_jax.transformer import layers, tpu
from infinity_jax.transformer.layers import linear
from infinity_jax.transformer.tpu import TILE_ROWS, in_pieces, tiled_product, uses_tiles


def normal(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def products(function, *args):
    """Shapes of the matrix products in the program of a function."""
    return set(re.findall(r'dot_general .*', jax.jit(function).lower(*args).as_text()))


@pytest.mark.parametrize('shape', [(2, 8), (2, 150, 8), (1, TILE_ROWS, 8)])
@pytest.mark.parametrize('features', [5, 300, 512])
def test_tiles_make_the_same_product(shape, features):
    x, kernel = normal(*shape), normal(8, features)
    wanted = jnp.matmul(x, kernel)
    tiles = tiled_product(jnp.matmul, x, kernel)
    assert tiles.shape == wanted.shape
    np.testing.assert_allclose(tiles, wanted, rtol=1e-5, atol=1e-5)


def test_products_of_all_lengths_and_widths_are_equal():
    def tiles(rows, features):
        run = lambda x, kernel: tiled_product(jnp.matmul, x, kernel)
        return products(run, normal(rows, 8), normal(8, features))

    assert tiles(2, 512) == tiles(700, 512) == tiles(700, 768)
    assert len(tiles(700, 512)) == 1


def test_a_tiled_layer_is_the_same_layer(monkeypatch):
    layer, x = linear(512, (None, None), 0.1, jnp.float32), normal(2, 150, 8)
    variables = {'params': {'kernel': normal(8, 512), 'bias': normal(512)}}

    def run(x, **options):
        return layer.apply(variables, x, **options)

    wanted = run(x)
    assert products(lambda x: run(x, tiled=True), x) == products(run, x)
    monkeypatch.setattr(layers, 'uses_tiles', lambda: True)
    np.testing.assert_allclose(run(x, tiled=True), wanted, rtol=1e-5, atol=1e-5)
    assert products(lambda x: run(x, tiled=True), x) != products(run, x)


def test_tiles_are_for_one_tpu_chip(monkeypatch):
    assert not uses_tiles()
    monkeypatch.setattr(tpu, 'target_platform', lambda: 'tpu')
    assert uses_tiles()
    device = AbstractDevice(device_kind='some', num_cores=1, platform='tpu')
    for chips in (1, 2):
        with jax.sharding.use_abstract_mesh(
            AbstractMesh((chips,), ('data',), abstract_device=device)
        ):
            assert uses_tiles() == (chips == 1)


@pytest.mark.parametrize(
    ('length', 'rows', 'pieces'),
    [(6, 18, [6]), (6, 17, [2] * 3), (5, 4, [3, 2]), (12, 10, [3] * 4), (13, 10, [4, 3, 3, 3])]
    + [(12, 9, [12])],  # pieces of 9 rows would be too long as well
)
def test_products_of_many_rows_are_split_by_tokens(monkeypatch, length, rows, pieces):
    x, kernel, found = normal(3, length, 8), normal(8, 16), []

    def product(part):
        found.append(part.shape[1])
        return part @ kernel

    np.testing.assert_array_equal(in_pieces(product, x), x @ kernel)  # no TPU: at once
    monkeypatch.setattr(tpu, 'MAX_ROWS', rows)
    monkeypatch.setattr(tpu, 'PIECE_ROWS', 8)
    monkeypatch.setattr(tpu, 'MAX_PIECES', 4)
    monkeypatch.setattr(tpu, 'uses_tiles', lambda: True)
    np.testing.assert_allclose(in_pieces(product, x), x @ kernel, atol=1e-5)
    assert found == [length, *pieces]
