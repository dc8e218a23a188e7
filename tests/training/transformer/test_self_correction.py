"""Self-correction against teacher forcing, and the statistics of its flips."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infinity_jax.scales import ScaleSchedule
from infinity_jax.tokenizer.quantizer import (
    accumulate,
    codes_from_bits,
    flatten_tokens,
    next_input,
    quantize,
    total_from_bits,
)
from infinity_jax.training.transformer.self_correction import correct, corrupt, sample_flips

pytestmark = pytest.mark.numeric

SCHEDULE = ScaleSchedule.free(((1, 1), (2, 2), (3, 2), (4, 4)))
TWO_SCALES = ScaleSchedule.free(((1, 1), (2, 2)))


def features(batch, d, schedule=SCHEDULE, patchify=False, seed=0):
    grid = schedule.code_grids(patchify)[-1]
    return np.random.default_rng(seed).standard_normal((batch, *grid, d)).astype(np.float32)


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5))
def compiled(key, f, schedule, max_strength, group, patchify):
    flips = sample_flips(
        key,
        f.shape[0],
        f.shape[-1],
        schedule,
        max_strength=max_strength,
        group=group,
        patchify=patchify,
    )
    return corrupt(f, schedule, flips, patchify=patchify)


def run(key, f, schedule=SCHEDULE, max_strength=0.3, group=0, patchify=False):
    """Inputs and targets of `corrupt` as numpy arrays."""
    return jax.device_get(compiled(key, f, schedule, max_strength, group, patchify))


@functools.cache
def flipped_share(group):
    """Share of the 1024 bits of a first scale that flip, for 40 keys and 64 images: (40, 64)."""
    f = features(64, 1024, TWO_SCALES)
    shares = []
    for seed in range(40):
        inputs, targets = run(jax.random.key(seed), f, TWO_SCALES, 0.3, group)
        assert (inputs[:, :1] == inputs).all()  # one code, repeated on the 2×2 grid
        shares.append(((inputs[:, 0] > 0) != targets[:, 0]).mean(-1))
    return np.array(shares)


def test_without_requantizing_the_inputs_have_flips_and_the_targets_do_not_follow():
    f, key = features(2, 6), jax.random.key(3)
    flips = sample_flips(key, 2, 6, SCHEDULE, max_strength=0.3)
    inputs, targets = corrupt(f, SCHEDULE, flips, requantize=False)
    clean_inputs, clean_targets = corrupt(f, SCHEDULE, ())
    corrected_targets = corrupt(f, SCHEDULE, flips)[1]
    assert (targets == clean_targets).all() and (targets != corrected_targets).any()
    # The flips of the first scale reach the second one's inputs, on top of the same true bits.
    first = slice(0, 4)
    np.testing.assert_array_equal(inputs[:, first], corrupt(f, SCHEDULE, flips)[0][:, first])
    assert (inputs[:, first] != clean_inputs[:, first]).any()


@pytest.mark.parametrize('patchify', [False, True])
def test_strength_zero_is_teacher_forcing(patchify):
    f = features(2, 6, patchify=patchify)
    inputs, targets = run(jax.random.key(0), f, max_strength=0.0, patchify=patchify)
    grids = SCHEDULE.code_grids(patchify)

    @jax.jit
    def by_hand(f):
        bits, total = quantize(f, grids).bits, jnp.zeros(f.shape)
        inputs = []
        for scale, grid in enumerate(grids):
            inputs.append(flatten_tokens(next_input(total, grid), patchify))
            total = accumulate(total, codes_from_bits(bits[scale]))
        targets = [flatten_tokens(b, patchify) for b in bits]
        return jnp.concatenate(inputs[1:], axis=1), jnp.concatenate(targets, axis=1)

    wanted_inputs, wanted_targets = by_hand(f)
    width = 24 if patchify else 6
    assert inputs.shape == (2, SCHEDULE.num_tokens - 1, width) and inputs.dtype == jnp.float32
    assert targets.shape == (2, SCHEDULE.num_tokens, width) and targets.dtype == bool
    np.testing.assert_array_equal(targets, wanted_targets)
    np.testing.assert_allclose(inputs, wanted_inputs, atol=1e-6)


def test_patchify_folds_inputs_and_targets_alike():
    """Token (i, j) holds the four codes of its 2×2 square, channels first."""
    codes = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    tokens = flatten_tokens(codes, True)
    assert tokens.shape == (2, 6, 12)
    square = codes[0, 2:4, 2:4]  # token row 1, column 1
    assert (tokens[0, 4].reshape(3, 2, 2) == np.moveaxis(square, -1, 0)).all()
    assert (flatten_tokens(codes, False)[1, 7] == codes[1, 1, 1]).all()


def test_a_key_repeats_and_another_differs():
    f = features(2, 16)
    first, again, other = (run(jax.random.key(seed), f) for seed in (1, 1, 2))
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert (first[0] != other[0]).any()


def test_the_first_targets_are_the_true_bits_and_later_ones_answer_to_flips():
    f = features(2, 16)
    _, targets = run(jax.random.key(1), f)
    bits = jax.device_get(jax.jit(lambda f: quantize(f, SCHEDULE.grids).bits)(f))
    plain = np.concatenate([b.reshape(2, -1, 16) for b in bits], axis=1)
    assert (plain[:, 0] == targets[:, 0]).all()
    assert (plain[:, 1:] != targets[:, 1:]).any()


def test_flip_rate_of_the_whole_batch():
    shares = flipped_share(0)
    rates = shares.mean(1)  # 65536 bits each: a standard deviation of 0.002 about its strength
    np.testing.assert_allclose(rates * 100, np.round(rates * 100), atol=0.8)
    assert rates.max() < 0.31
    assert abs(rates.mean() - 0.15) < 5 * 0.09 / 40**0.5
    assert rates.std() > 0.05  # the strength itself varies
    assert np.abs(shares - rates[:, None]).max() < 0.07  # and is one for the batch


def test_flip_rate_per_image():
    shares = flipped_share(1)
    assert shares.std(1).min() > 0.05
    assert shares.max() < 0.3 + 5 * 0.0145
    assert abs(shares.mean() - 0.15) < 5 * 0.09 / shares.size**0.5
    none = (shares == 0).mean()  # strength 0 is one of 31
    assert 0.015 < none < 0.06


def test_images_of_a_group_share_a_strength_and_groups_differ():
    inputs, targets = run(jax.random.key(0), features(38, 1024, TWO_SCALES), TWO_SCALES, 0.3, 4)
    rates = ((inputs[:, 0] > 0) != targets[:, 0]).mean(-1)
    groups = np.split(rates, range(4, 38, 4))  # the last one has two images
    assert max(np.ptp(group) for group in groups) < 0.07
    assert np.std([group.mean() for group in groups]) > 0.05


def test_both_ends_of_the_strengths_are_sampled():
    """At most 0.01, half of the images get strength 0 and half 0.01, ten of 1024 bits."""
    f = features(64, 1024, TWO_SCALES)
    inputs, targets = run(jax.random.key(0), f, TWO_SCALES, 0.01, 1)
    rates = ((inputs[:, 0] > 0) != targets[:, 0]).mean(-1)
    assert 0.25 < (rates == 0).mean() < 0.75
    assert 0.006 < rates[rates > 0].mean() < 0.014


def test_scales_flip_independently_of_each_other():
    schedule = ScaleSchedule.free(((1, 1), (1, 1), (1, 1)))
    f = features(1, 4096, schedule)
    inputs, targets = run(jax.random.key(3), f, schedule)
    first = (inputs[0, 0] > 0) != targets[0, 0]
    second = ((inputs[0, 1] - inputs[0, 0]) > 0) != targets[0, 1]
    rate = first.mean() * second.mean()
    assert first.mean() > 0 and second.mean() > 0
    assert abs((first & second).mean() - rate) < 0.02


def test_later_scales_repair_what_flips_broke():
    schedule = ScaleSchedule.free(((1, 1), (2, 2), (4, 4), (4, 4), (4, 4), (4, 4)))
    f = 0.6 * features(4, 16, schedule)
    rng = np.random.default_rng(1)
    masks = [rng.random((4, h, w, 16)) < (0.3 if h < 4 else 0.0) for h, w in schedule.grids]

    @jax.jit
    def errors(f):
        accumulated = []

        def flip(scale, bits):
            accumulated.append(bits ^ masks[scale])
            return accumulated[-1]

        correct(f, schedule, flip)
        true_bits = quantize(f, schedule.grids).bits
        not_repaired = [bits ^ mask for bits, mask in zip(true_bits, masks, strict=True)]
        kinds = (true_bits, tuple(accumulated), tuple(not_repaired))
        return [jnp.square(total_from_bits(bits) - f).mean() for bits in kinds]

    untouched, repaired, broken = errors(f)
    assert untouched < repaired < broken
    assert broken - untouched > 3 * (repaired - untouched)


def test_last_targets_are_bits_of_what_is_left():
    """Each scale's targets are the signs of features minus the (flipped) accumulation."""
    f = features(2, 16)
    inputs, targets = run(jax.random.key(1), f)
    start, end = SCHEDULE.spans[-1]
    left = f.reshape(2, -1, 16) - inputs[:, start - 1 : end - 1]
    assert (targets[:, start:end] == (left > 0)).all()
