"""The tokenizer trainer on a toy: it learns, resumes bit for bit and leaves a tokenizer folder."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from infinity_jax import loop
from infinity_jax.config import TokenizerConfig, UserError
from infinity_jax.metrics import read_metrics
from infinity_jax.model_folder import load_model
from infinity_jax.optimizer import OptimizerConfig
from infinity_jax.sharding import make_mesh
from infinity_jax.tokenizer.quantizer import quantize
from infinity_jax.train_tokenizer import (
    TokenizerLosses,
    TokenizerRunConfig,
    bit_usage,
    check,
    loss_terms,
    make_task,
)


@pytest.fixture
def config(tmp_path):
    return TokenizerRunConfig(
        task='tokenizer',
        run_dir=str(tmp_path / 'run'),
        steps=20,
        batch_size=8,
        log_every=1,
        eval_every=10,
        eval_batches=1,
        sample_every=20,
        checkpoint_every=10,
        optimizer=OptimizerConfig(learning_rate=1e-2, ema_decay=0.5),
        data=loop.DataConfig(picture_size=16),
        grids=((1, 1), (2, 2), (4, 4)),
        tokenizer=TokenizerConfig(
            bits=8, base_channels=8, channel_multipliers=(1,), residual_blocks=1, unshuffle=4,
            norm_groups=4,
        ),
    )  # fmt: skip


def run(config):
    mesh = make_mesh(devices=jax.devices()[:1])
    return loop.run(config, make_task(config, mesh), mesh)


def test_learns_resumes_and_exports(config, tmp_path):
    folder = run(config)
    whole = [record['loss'] for record in read_metrics(config.run_dir)]
    assert np.mean(whole[-3:]) < 0.8 * np.mean(whole[:3])
    assert read_metrics(config.run_dir, 'heldout')[-1]['psnr'] > 8
    assert Image.open(tmp_path / 'run' / 'samples' / 'step_0000020.png').width > 100
    bundle = load_model(folder)
    assert bundle.tokenizer_config == config.tokenizer and bundle.schedule.grids == config.grids
    assert bundle.transformer_params is None
    # Half the run, then the same command with the whole length: a constant rate, so the same run.
    cut = dataclasses.replace(config, run_dir=str(tmp_path / 'cut'), sample_every=100)
    run(dataclasses.replace(cut, steps=10))
    run(cut)
    assert [record['loss'] for record in read_metrics(cut.run_dir)] == whole


def test_loss_is_the_weighted_sum():
    features = jax.random.normal(jax.random.key(0), (2, 4, 4, 8))
    quantized = quantize(features, ((1, 1), (4, 4)))
    target = jnp.zeros((2, 8, 8, 3))
    weights = TokenizerLosses(l1=1.0, l2=2.0, commitment=3.0, entropy=4.0)
    loss, terms = loss_terms(target + 0.5, target, quantized, weights)
    assert terms['l1'] == pytest.approx(0.5) and terms['l2'] == pytest.approx(0.25)
    wanted = 0.5 + 2 * 0.25 + 3 * terms['commitment'] + 4 * terms['entropy']
    assert loss == pytest.approx(float(wanted), rel=1e-6)


def test_bit_usage_of_dead_and_of_balanced_bits():
    dead = jnp.ones((4, 2, 2, 8), bool)
    balanced = jnp.arange(4)[:, None, None, None] % 2 * jnp.ones((4, 2, 2, 8)) > 0
    np.testing.assert_allclose(bit_usage((dead, balanced)), [0.0, 1.0], atol=1e-4)


def test_straight_through_gradients_reach_the_encoder():
    features = jax.random.normal(jax.random.key(0), (1, 4, 4, 8))
    grad = jax.grad(lambda f: jnp.sum(quantize(f, ((1, 1), (4, 4))).total_Bhwd ** 2))(features)
    assert jnp.isfinite(grad).all() and jnp.abs(grad).max() > 0


def test_disagreeing_sizes_are_refused(config):
    with pytest.raises(UserError, match='data.picture_size is 32'):
        check(dataclasses.replace(config, data=loop.DataConfig(picture_size=32)))
    with pytest.raises(UserError, match="precision is 'low'"):
        check(dataclasses.replace(config, precision='low'))
