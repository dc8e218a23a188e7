import numpy as np
import pytest

from infinity_jax.tokenizer.quantizer import depth_to_space, space_to_depth

pytestmark = pytest.mark.numeric


def test_channel_order_is_c4_plus_2dy_plus_dx():
    x = np.random.default_rng(0).standard_normal((2, 6, 4, 5))
    tokens = space_to_depth(x)
    assert tokens.shape == (2, 3, 2, 20)
    for c in range(5):
        for dy in range(2):
            for dx in range(2):
                assert (tokens[..., c * 4 + 2 * dy + dx] == x[:, dy::2, dx::2, c]).all()


def test_depth_to_space_is_the_inverse():
    x = np.random.default_rng(0).standard_normal((2, 6, 4, 5))
    assert (depth_to_space(space_to_depth(x)) == x).all()
    y = np.random.default_rng(1).standard_normal((1, 3, 2, 8)) > 0
    assert (space_to_depth(depth_to_space(y)) == y).all()
