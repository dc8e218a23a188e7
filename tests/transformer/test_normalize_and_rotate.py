"""Normalised and rotated queries and keys: the written gradient, and the form for TPU."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny import TRANSFORMER

from infinity_jax.scales import ScaleSchedule
from infinity_jax.transformer.attention import SelfAttention
from infinity_jax.transformer.rope import normalize_and_rotate, rope_table, rotate

pytestmark = pytest.mark.numeric

SCHEDULE = ScaleSchedule.free(((1, 1), (2, 3), (4, 6)))  # 31 tokens
TABLE = rope_table(SCHEDULE, 8)
SCALE = jnp.array([0.5, 2.0, 4.0])


def queries():
    x = np.random.default_rng(0).standard_normal((2, SCHEDULE.num_tokens, 3, 8))
    return jnp.asarray(x, jnp.float32)


def plain(x, scale):
    unit = x / jnp.sqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True))
    return rotate(unit * scale[None, None, :, None], TABLE)


def values_and_gradients(function, *args):
    def loss(*args):
        y = function(*args)
        return jnp.sum(y * jnp.cos(jnp.arange(y.size)).reshape(y.shape)), y

    (_, y), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(*args)
    return y, *gradients


@pytest.mark.parametrize('platform', ['cpu', 'tpu'])
@pytest.mark.parametrize('heads_axis', [1, 2])
def test_values_and_gradients_are_those_of_the_formula(monkeypatch, platform, heads_axis):
    module = 'infinity_jax.transformer.rope.target_platform'
    monkeypatch.setattr(module, lambda: platform)

    def ours(x, scale):
        if heads_axis == 2:
            return normalize_and_rotate(x, TABLE, scale)
        return normalize_and_rotate(x.swapaxes(1, 2), TABLE, scale, heads_axis=1).swapaxes(1, 2)

    pairs = zip(
        values_and_gradients(ours, queries(), SCALE),
        values_and_gradients(plain, queries(), SCALE),
        strict=True,
    )
    for mine, wanted in pairs:
        np.testing.assert_allclose(mine, wanted, atol=3e-6 * np.abs(wanted).max())


def test_a_vector_without_length_has_no_direction_and_no_gradient():
    lengths = jnp.array([0, 1e-13, 0.9e-6, 1.1e-6, 1e-3])[jnp.arange(SCHEDULE.num_tokens) % 5]
    unit = queries() / jnp.linalg.norm(queries(), axis=-1, keepdims=True)
    x, long = unit * lengths[None, :, None, None], lengths > 1e-6
    ours = values_and_gradients(lambda x, s: normalize_and_rotate(x, TABLE, s), x, SCALE)
    wanted = values_and_gradients(plain, x.at[:, ~long].set(1.0), SCALE)
    assert not np.any(ours[0][:, lengths == 0]) and not np.any(ours[1][:, ~long])
    assert np.isfinite(ours[2]).all()
    size = lengths[None, long, None, None]
    mine, other = (size * dx[:, long] for dx in (ours[1], wanted[1]))
    np.testing.assert_allclose(mine, other, atol=1e-5)


@pytest.mark.parametrize('generating', [False, True])
def test_heads_first_are_the_same_queries_keys_and_values(monkeypatch, generating):
    config = dataclasses.replace(TRANSFORMER, width=24, num_heads=3)
    module, x = SelfAttention(config), queries().reshape(2, -1, 24)
    project = jax.jit(
        lambda variables: module.apply(
            variables, x, TABLE, generating, method=SelfAttention.project
        )
    )
    variables = module.init(jax.random.key(0), x, TABLE, method=SelfAttention.project)
    leaves, tree = jax.tree.flatten(variables)
    random = np.random.default_rng(1)
    leaves = [leaf + random.standard_normal(leaf.shape) for leaf in leaves]  # no bias is zero
    variables = jax.tree.unflatten(tree, leaves)
    wanted = project(variables)
    project.clear_cache()
    for module_name in ('attention', 'tpu'):
        name = f'infinity_jax.transformer.{module_name}.target_platform'
        monkeypatch.setattr(name, lambda: 'tpu')
    for mine, other in zip(project(variables), wanted, strict=True):
        np.testing.assert_allclose(mine, other, atol=2e-5)
