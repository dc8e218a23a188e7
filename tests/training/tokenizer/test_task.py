"""The tokenizer trainer on a toy: it learns, resumes bit for bit and leaves a tokenizer folder."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.lpips_weights import narrow_files
from helpers.models import model_of
from helpers.stride4 import EIGHT_BITS, GRIDS
from helpers.tiny import tokenizer_variables
from helpers.tiny_run import FIELDS
from PIL import Image

from infinity_jax.errors import UserError
from infinity_jax.sharding import make_mesh
from infinity_jax.tokenizer.autoencoder import Autoencoder
from infinity_jax.tokenizer.quantizer import quantize
from infinity_jax.training import flops, loop
from infinity_jax.training.init_from import tokenizer_params
from infinity_jax.training.metrics import read_metrics
from infinity_jax.training.optimizer import OptimizerConfig
from infinity_jax.training.tokenizer.config import TokenizerLosses, TokenizerRunConfig, check
from infinity_jax.training.tokenizer.losses import entropy_penalty
from infinity_jax.training.tokenizer.noise import QuantizerTraining
from infinity_jax.training.tokenizer.step import Outputs, bit_usage, loss_terms
from infinity_jax.training.tokenizer.task import make_task
from infinity_jax.weights.model_folder import load_model, save_model

pytestmark = pytest.mark.numeric


@pytest.fixture
def config(tmp_path):
    return TokenizerRunConfig(
        task='tokenizer',
        run_dir=str(tmp_path / 'run'),
        steps=20,
        batch_size=8,
        eval_every=10,
        sample_every=20,
        checkpoint_every=10,
        grids=GRIDS,
        tokenizer=EIGHT_BITS,
        **FIELDS,
    )


def save_tokenizer(folder, config):
    params = tokenizer_variables(config)['params']
    save_model(folder, model_of(tokenizer_config=config, tokenizer_params=params))
    return params


def run(config):
    mesh = make_mesh(devices=jax.devices()[:1])
    return loop.run(config, make_task(config, mesh), mesh)


def test_learns_resumes_and_exports(config, tmp_path):
    folder = run(config)
    whole = [record['loss'] for record in read_metrics(config.run_dir)]
    assert np.mean(whole[-3:]) < 0.8 * np.mean(whole[:3])
    line = read_metrics(config.run_dir)[-1]
    step = flops.tokenizer_training_step(config.tokenizer, 16, 16, config.batch_size)
    assert line['model_tflops_per_second'] * 1e12 * line['step_seconds'] == pytest.approx(step)
    assert read_metrics(config.run_dir, 'heldout')[-1]['psnr'] > 8
    assert Image.open(tmp_path / 'run' / 'samples' / 'step_0000020.png').width > 100
    loaded = load_model(folder)
    assert (
        loaded.configs.tokenizer == config.tokenizer
        and loaded.configs.schedule.grids == config.grids
    )
    assert loaded.transformer_params is None
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
    outputs = Outputs(target + 0.5, None, quantized.normalised)
    loss, terms = loss_terms(outputs, target, None, weights)
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


def test_truncated_images_have_their_own_term():
    features = jax.random.normal(jax.random.key(0), (2, 4, 4, 8))
    z = quantize(features, ((1, 1), (4, 4))).normalised
    target = jnp.zeros((2, 8, 8, 3))
    weights = TokenizerLosses(l1=1.0, l2=2.0, commitment=0, entropy=0, truncated=0.5)
    loss, terms = loss_terms(Outputs(target, target + 0.5, z), target, None, weights)
    assert terms['truncated'] == pytest.approx(0.5 + 2 * 0.25)
    assert loss == pytest.approx(0.5, rel=1e-6)


def test_every_option_trains_and_is_finite(config):
    options = dataclasses.replace(
        config,
        steps=3,
        losses=TokenizerLosses(truncated=0.5),
        quantizer=QuantizerTraining(
            scale_drop=0.5, keep_first=True, flip_rate=0.1, flip_scales=2, attach_residual=True
        ),
    )
    run(options)
    records = read_metrics(options.run_dir)
    assert len(records) == 3 and all(record['skipped'] == 0 for record in records)
    assert all(np.isfinite(record['truncated']) for record in records)


def test_lpips_weights_are_used_and_not_stored(config, tmp_path, monkeypatch):
    vgg, heads = narrow_files(tmp_path, monkeypatch)
    named = dataclasses.replace(
        config,
        steps=2,
        losses=TokenizerLosses(perceptual=1.0),
        vgg_weights=vgg,
        lpips_heads=heads,
    )
    folder = run(named)
    for split in ('train', 'heldout'):
        assert read_metrics(named.run_dir, split)[-1]['perceptual'] > 0
    assert 'vgg.safetensors' not in (folder / 'config.json').read_text()


def test_a_folder_with_other_bits_gives_all_but_the_layers_next_to_them(config, tmp_path, capsys):
    params = save_tokenizer(tmp_path / 'd8', config.tokenizer)
    for bits, new in ((8, 0), (12, 3)):
        wider = dataclasses.replace(config.tokenizer, bits=bits)
        fresh = tokenizer_variables(wider, seed=1)['params']
        started = tokenizer_params(str(tmp_path / 'd8'), fresh)
        same = [
            np.array_equal(a, b)
            for a, b in zip(jax.tree.leaves(started), jax.tree.leaves(fresh), strict=True)
        ]
        assert sum(same) == new  # only these come from the new run
        assert (started['decoder']['conv_out']['kernel'] == params['decoder']['conv_out'][
            'kernel']).all()  # fmt: skip
    said = capsys.readouterr().out
    assert said.count('\n') == 1 and 'has 8 bits, not 12' in said
    other = dataclasses.replace(config.tokenizer, base_channels=16)
    with pytest.raises(UserError, match='use that model'):
        tokenizer_params(str(tmp_path / 'd8'), tokenizer_variables(other)['params'])


def test_a_frozen_encoder_wants_its_own_number_of_bits(config, tmp_path):
    save_tokenizer(tmp_path / 'd8', config.tokenizer)
    frozen = dataclasses.replace(
        config,
        tokenizer=dataclasses.replace(config.tokenizer, bits=12),
        init_from=str(tmp_path / 'd8'),
        freeze_encoder=True,
    )
    check(frozen)  # which reads no folder
    task = make_task(frozen, make_mesh(devices=jax.devices()[:1]))
    task.batches.close()
    with pytest.raises(UserError, match='freeze_encoder is set and tokenizer.bits is 12, but') as e:
        task.from_model()
    assert 'd8 has 8:' in str(e.value) and '\n' not in str(e.value)


def test_a_folder_without_a_tokenizer_is_refused(config, tmp_path):
    save_model(tmp_path / 'none', model_of())
    fresh = tokenizer_variables(config.tokenizer)['params']
    with pytest.raises(UserError, match='none: holds no tokenizer; name a model folder') as e:
        tokenizer_params(str(tmp_path / 'none'), fresh)
    assert '\n' not in str(e.value)


def test_training_starts_from_a_folder_with_other_bits(config, tmp_path):
    params = save_tokenizer(tmp_path / 'd8', config.tokenizer)
    wider = dataclasses.replace(config.tokenizer, bits=12)
    mesh = make_mesh(devices=jax.devices()[:1])
    task = make_task(
        dataclasses.replace(config, tokenizer=wider, init_from=str(tmp_path / 'd8')), mesh
    )
    state = task.from_model()
    task.batches.close()
    for tree in (state.params, state.ema):
        assert tree['decoder']['conv_in']['kernel'].shape[2] == 12
        kernel = tree['encoder']['conv_in']['kernel']
        assert (kernel == params['encoder']['conv_in']['kernel']).all()


def test_a_deeper_decoder_on_a_kept_encoder_starts_as_it_was_and_changes_no_bit(config, tmp_path):
    params = save_tokenizer(tmp_path / 'old', config.tokenizer)
    deeper = dataclasses.replace(
        config,
        steps=3,
        tokenizer=dataclasses.replace(config.tokenizer, decoder_blocks=4),
        init_from=str(tmp_path / 'old'),
        freeze_encoder=True,
        optimizer=OptimizerConfig(learning_rate=1e-2, ema_decay=0.5, weight_decay=1.0),
    )
    fresh = tokenizer_variables(deeper.tokenizer, seed=1)['params']
    started = tokenizer_params(deeper.init_from, fresh)
    assert set(started['decoder']['up_0']) == {f'block_{i}' for i in range(4)}
    total = jax.random.normal(jax.random.key(0), (1, 4, 4, 8))
    before, after = (
        Autoencoder(c).apply({'params': p}, total, method=Autoencoder.decode)
        for c, p in ((config.tokenizer, params), (deeper.tokenizer, started))
    )
    np.testing.assert_allclose(after, before, atol=1e-5)
    trained = load_model(run(deeper))
    assert trained.configs.tokenizer.decoder_blocks == 4
    same = jax.tree.map(np.array_equal, trained.tokenizer_params, started)
    assert all(jax.tree.leaves(same['encoder'])) and not any(jax.tree.leaves(same['decoder']))
    with pytest.raises(UserError, match='without init_from'):
        check(dataclasses.replace(deeper, init_from=''))


def test_the_entropy_term_has_the_configured_temperature():
    z = quantize(jax.random.normal(jax.random.key(0), (2, 4, 4, 8)), ((1, 1), (4, 4))).normalised
    target = jnp.zeros((2, 8, 8, 3))
    weights = TokenizerLosses(inverse_temperature=4.0)
    _, terms = loss_terms(Outputs(target, None, z), target, None, weights)
    assert terms['entropy'] == entropy_penalty(z, 4.0) != entropy_penalty(z)
    with pytest.raises(UserError, match='inverse_temperature is 0.0'):
        TokenizerLosses(inverse_temperature=0.0)
