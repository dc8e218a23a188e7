import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infinity_jax.errors import UserError
from infinity_jax.inference.sampling import SamplingConfig, flip_bits, keep_likely, sample_bits

COUNT = 20_000


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def log_odds(probability):
    """Logits whose softmax gives bit 1 this probability."""
    return jnp.array([np.log(1 - probability), np.log(probability)], jnp.float32)


def sampled(probability, top_k=0, top_p=1.0, count=COUNT):
    logits = keep_likely(log_odds(probability), top_k, top_p)
    return sample_bits(keys(1), jnp.broadcast_to(logits[None, None], (1, count, 2)))[0]


@pytest.mark.parametrize('probability', [0.03, 0.3, 0.5, 0.9])
def test_bits_come_with_the_probability_of_their_softmax(probability):
    bits = sampled(probability)
    assert bits.dtype == bool
    spread = (probability * (1 - probability) / COUNT) ** 0.5
    assert abs(bits.mean() - probability) < 4 * spread


def test_greedy_takes_the_larger_logit():
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((3, 50, 8, 2)), jnp.float32)
    for seed in (0, 1):
        for top_p in (1.0, 0.97):
            bits = sample_bits(keys(3, seed), keep_likely(logits, 1, top_p))
            assert (bits == (logits[..., 1] > logits[..., 0])).all()


@pytest.mark.parametrize(('probability', 'bit'), [(0.0295, False), (0.9705, True)])
def test_top_p_never_takes_what_is_at_most_three_percent_likely(probability, bit):
    assert (sampled(probability, top_p=0.97) == bit).all()
    assert (sampled(probability, top_p=1.0) != bit).any()


def test_top_p_leaves_likelier_values_untouched():
    np.testing.assert_array_equal(keep_likely(log_odds(0.035), 0, 0.97), log_odds(0.035))
    assert 0.025 < sampled(0.035, top_p=0.97).mean() < 0.045


def test_top_p_always_leaves_a_value():
    for probability in (0.01, 0.4, 0.5, 0.99):
        assert np.isfinite(keep_likely(log_odds(probability), 0, 1e-3)).any()


def test_top_k_two_and_zero_change_nothing():
    for top_k in (0, 2):
        np.testing.assert_array_equal(keep_likely(log_odds(0.01), top_k, 1.0), log_odds(0.01))


def test_infinite_margins_leave_no_choice():
    logits = jnp.array([[[0.0, -jnp.inf], [-jnp.inf, 0.0]]] * COUNT)[None]
    bits = sample_bits(keys(1), logits)[0]
    assert not bits[:, 0].any() and bits[:, 1].all()


@pytest.mark.parametrize('rate', [0.0, 0.1, 0.3, 1.0])
def test_bits_flip_at_their_rate_and_at_any_higher_one(rate):
    bits = sampled(0.5, count=COUNT)[None]
    flipped = flip_bits(keys(1), bits, jnp.float32(rate)) != bits
    assert abs(flipped.mean() - rate) <= 4 * (rate * (1 - rate) / COUNT) ** 0.5
    more = flip_bits(keys(1), bits, jnp.float32(min(2 * rate, 1))) != bits
    assert (more | ~flipped).all()
    # The flips are independent of the random numbers that have sampled the bits.
    assert abs(flipped[bits].mean() - rate) < 0.02


def test_a_image_depends_on_its_own_key_only():
    logits = jnp.zeros((3, 10, 4, 2))
    of_three = sample_bits(keys(3), logits)
    alone = sample_bits(keys(3)[1:2], logits[:1])
    assert (of_three[1] == alone[0]).all()
    assert (of_three[0] != of_three[1]).any()


def test_numbers_per_scale():
    config = SamplingConfig(guidance=(1.0, 2.0, 3.0), temperature=(0.5,))
    assert config.per_scale('guidance', 3) == (1.0, 2.0, 3.0)
    assert config.per_scale('temperature', 3) == (0.5, 0.5, 0.5)
    with pytest.raises(UserError, match='guidance lists 3 numbers for 4 scales'):
        config.per_scale('guidance', 4)


@pytest.mark.parametrize(
    ('field', 'value'),
    [('top_p', 0.0), ('top_p', 1.1), ('top_k', 3), ('top_k', -1), ('temperature', (0.0,)),
     ('temperature', (1.0, -1.0)), ('temperature', (float('nan'),))],
)  # fmt: skip
def test_bad_settings_are_user_errors(field, value):
    with pytest.raises(UserError, match=f'{field} is'):
        SamplingConfig(**{field: value})


@pytest.mark.parametrize(
    'field, value',
    [('guidance', (float('nan'),)), ('temperature', ()), ('guidance_layer', 3)],
)
def test_meaningless_settings_are_refused(field, value):
    with pytest.raises(UserError, match=field):
        SamplingConfig(**{field: value})


def test_one_number_serves_all_scales():
    assert SamplingConfig(guidance=3).per_scale('guidance', 2) == (3, 3)


@pytest.mark.parametrize(
    ('guidance', 'unguided', 'wanted'),
    [(1, 0, False), (3, 0, True), (3, 2, True), ((1, 1, 3), 1, False), ((1, 3, 3), 1, True)],
)
def test_guidance_of_unguided_scales_does_not_count(guidance, unguided, wanted):
    assert SamplingConfig(guidance=guidance, unguided_scales=unguided).guided is wanted
