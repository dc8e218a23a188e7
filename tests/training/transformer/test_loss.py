"""The bit loss and its metrics against float64 formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infinity_jax.scales import ScaleSchedule
from infinity_jax.training.transformer.loss import bit_loss, token_losses, token_weights

pytestmark = pytest.mark.numeric

SCHEDULE = ScaleSchedule.free(((1, 1), (2, 2), (3, 4)))


def example(d=5, batch=3):
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((batch, SCHEDULE.num_tokens, d, 2)).astype(np.float32)
    return logits, rng.random((batch, SCHEDULE.num_tokens, d)) < 0.3


def cross_entropy(logits, targets):
    """−log softmax at the target, in float64: (B, L, d)."""
    logits = logits.astype(np.float64)
    log_sum = np.log(np.exp(logits).sum(-1))
    return log_sum - np.take_along_axis(logits, targets[..., None].astype(int), -1)[..., 0]


def test_weights_go_with_the_inverse_root_of_the_grid_and_sum_to_one():
    weights = token_weights(SCHEDULE, True)
    wanted = np.repeat([1, 1 / 2, 1 / 12**0.5], [1, 4, 12])
    np.testing.assert_allclose(weights, wanted / wanted.sum(), rtol=1e-6)
    np.testing.assert_allclose(token_weights(SCHEDULE, False), 1 / 17, rtol=1e-6)
    full = ScaleSchedule.for_image(1.5, '1M')
    assert token_weights(full, True).sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize('reweight', [False, True])
@pytest.mark.parametrize('dtype', [bool, np.int8])
def test_loss_is_the_weighted_two_way_cross_entropy(reweight, dtype):
    logits, targets = example()
    loss, _ = bit_loss(logits, jnp.asarray(targets.astype(dtype)), SCHEDULE, reweight=reweight)
    per_token = cross_entropy(logits, targets).mean(-1)
    wanted = (per_token * token_weights(SCHEDULE, reweight)).sum(-1).mean()
    assert loss.shape == () and loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, wanted, rtol=1e-6)
    if not reweight:
        np.testing.assert_allclose(loss, cross_entropy(logits, targets).mean(), rtol=1e-6)


def test_equal_logits_cost_log_two():
    targets = example()[1]
    loss, metrics = bit_loss(jnp.zeros((*targets.shape, 2)), targets, SCHEDULE)
    np.testing.assert_allclose(loss, np.log(2), rtol=1e-6)
    np.testing.assert_allclose(metrics.loss, np.log(2), rtol=1e-6)


def test_metrics_by_scale():
    logits, targets = example()
    metrics = bit_loss(logits, targets, SCHEDULE)[1]
    right = (logits[..., 1] > logits[..., 0]) == targets
    for k, (start, end) in enumerate(SCHEDULE.spans):
        part = cross_entropy(logits, targets)[:, start:end]
        np.testing.assert_allclose(metrics.loss[k], part.mean(), rtol=1e-5)
        np.testing.assert_allclose(metrics.accuracy[k], right[:, start:end].mean(), rtol=1e-6)
        ones = targets[:, start:end].mean((0, 1))
        wanted = np.maximum(ones, 1 - ones).mean()
        np.testing.assert_allclose(metrics.majority_rate[k], wanted, rtol=1e-6)


def test_huge_logits_give_finite_losses_and_gradients():
    targets = example()[1]
    logits = jnp.where(targets[..., None], jnp.array([1e4, -1e4]), jnp.array([-1e4, 1e4]))
    loss, gradient = jax.value_and_grad(lambda x: bit_loss(x, targets, SCHEDULE)[0])(logits)
    np.testing.assert_allclose(loss, 2e4, rtol=1e-6)
    assert np.isfinite(gradient).all()


def test_low_precision_logits_are_computed_in_float32():
    logits, targets = example()
    half = jnp.asarray(logits, jnp.bfloat16)
    losses = token_losses(half, targets)
    assert losses.dtype == jnp.float32
    wanted = cross_entropy(np.asarray(half.astype(jnp.float32)), targets).mean(-1)
    np.testing.assert_allclose(losses, wanted, rtol=1e-5)
