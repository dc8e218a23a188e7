import json

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.paths import GOLDEN

from infinity_jax.scales import RATIOS, ScaleSchedule
from infinity_jax.transformer.rope import rope_table, rotate, rotate_swapped, swap_pairs

pytestmark = pytest.mark.numeric

HEAD_DIM = 16


def slow_rotate(x, row, column):
    """One head's vector turned as complex numbers, pair by pair."""
    pairs = x.astype(np.float64)[0::2] + 1j * x.astype(np.float64)[1::2]
    half = len(x) // 2
    for i in range(half):
        j, position = (i, row) if i < half // 2 else (i - half // 2, column)
        pairs[i] *= np.exp(1j * position * 10000 ** (-2 * j / half))
    return np.stack([pairs.real, pairs.imag], axis=-1).reshape(-1)


def test_rotation_equals_complex_products_at_each_position():
    schedule = ScaleSchedule.free(((1, 1), (2, 3), (4, 6)))
    x = np.random.default_rng(0).standard_normal((1, schedule.num_tokens, 2, HEAD_DIM))
    x = x.astype(np.float32)
    turned = rotate(x, rope_table(schedule, HEAD_DIM))
    token = 0
    for h, w in schedule.grids:
        for i in range(h):
            for j in range(w):
                for head in range(2):
                    wanted = slow_rotate(x[0, token, head], round(i * 4 / h), round(j * 6 / w))
                    np.testing.assert_allclose(turned[0, token, head], wanted, atol=1e-5)
                token += 1


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_swapping_pairs_by_a_product_is_exact(dtype):
    schedule = ScaleSchedule.free(((1, 1), (2, 3), (4, 6)))
    table = rope_table(schedule, HEAD_DIM)
    x = np.random.default_rng(1).standard_normal((2, schedule.num_tokens, 3, HEAD_DIM))
    x = jnp.asarray(x, dtype)
    swapped = swap_pairs(x)
    assert swapped.dtype == x.dtype
    pairs = np.asarray(x, np.float32).reshape(*x.shape[:-1], -1, 2)
    np.testing.assert_array_equal(
        np.asarray(swapped, np.float32), pairs[..., ::-1].reshape(x.shape)
    )
    x, swapped = x.astype(jnp.float32), swapped.astype(jnp.float32)
    np.testing.assert_allclose(rotate_swapped(x, swapped, table), rotate(x, table), atol=1e-6)


def test_positions_round_half_to_even():
    schedule = ScaleSchedule.free(((1, 1), (2, 2), (2, 4), (3, 10)))
    positions = schedule.rope_positions()
    start, end = schedule.spans[2]
    assert positions[start:end, 1].tolist() == [0, 2, 5, 8] * 2  # 2.5 → 2, 7.5 → 8
    assert positions[start:end, 0].tolist() == [0] * 4 + [2] * 4  # 1.5 → 2
    assert positions[0].tolist() == [0, 0]


@pytest.mark.parametrize('ratio', sorted(RATIOS))
def test_positions_refer_to_the_full_grid_for_every_budget(ratio):
    full = ScaleSchedule.for_image(ratio, '1M')
    small = ScaleSchedule.for_image(ratio, '0.06M')
    positions = full.rope_positions()
    assert (small.rope_positions() == positions[: small.num_tokens]).all()
    assert (positions.max(0) == np.array(full.grids[-1]) - 1).all()
    start, _ = full.spans[-1]
    h, w = full.grids[-1]
    wanted = np.stack(np.meshgrid(np.arange(h), np.arange(w), indexing='ij'), -1).reshape(-1, 2)
    assert (positions[start:] == wanted).all()


def test_a_free_schedule_refers_to_its_own_last_grid():
    released = ScaleSchedule.for_image(1.0, '0.06M')
    own = ScaleSchedule.free(released.grids)
    assert own.rope_positions().max() == 15 and released.rope_positions().max() == 60


def test_rotation_keeps_lengths_and_depends_on_differences_only():
    schedule = ScaleSchedule.free(((1, 1), (4, 4)))
    table = rope_table(schedule, HEAD_DIM)
    q, k = np.random.default_rng(0).standard_normal((2, HEAD_DIM)).astype(np.float32)

    def everywhere(x):
        tokens = np.broadcast_to(x, (1, schedule.num_tokens, 1, HEAD_DIM))
        return np.asarray(rotate(tokens, table))[0, 1:, 0].reshape(4, 4, HEAD_DIM)

    turned_q, turned_k = everywhere(q), everywhere(k)
    np.testing.assert_allclose(np.linalg.norm(turned_q, axis=-1), np.linalg.norm(q), rtol=1e-5)
    products = [turned_q[i + 1, j + 2] @ turned_k[i, j] for i in range(3) for j in range(2)]
    np.testing.assert_allclose(products, products[0], atol=1e-5)
    assert abs(turned_q[2, 1] @ turned_k[0, 0] - products[0]) > 0.01  # rows are not columns


@pytest.mark.parametrize('name', ['a_2b_style', 'b_8b_style'])
def test_table_equals_the_released_one(name):
    meta = json.loads((GOLDEN / name / 'meta.json').read_text())
    wanted = np.load(GOLDEN / name / 'arrays.npz')['rope_cos_sin']
    schedule = ScaleSchedule.for_image(meta['h_div_w'], meta['pixel_budget'])
    head_dim = meta['transformer']['width'] // meta['transformer']['num_heads']
    table = rope_table(schedule, head_dim)
    assert table.dtype == np.float32
    np.testing.assert_allclose(table, wanted[:, : schedule.num_tokens], atol=2e-6)
