"""The index classifier: order of the bits, loss, choice among indices, generation, refusals."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.generation import GRIDS, generation_inputs, keys, sampling_numbers
from helpers.models import model_of
from helpers.tiny import (
    QUICK_COMPILE,
    TOKENIZER,
    TRANSFORMER,
    tokenizer_variables,
    transformer_variables,
)

from infinity_jax.config import TransformerConfig
from infinity_jax.convert.exporting import to_torch_files
from infinity_jax.errors import UserError
from infinity_jax.inference.edit import Edit
from infinity_jax.inference.editor import ImageEditor
from infinity_jax.inference.generate import generate_bits
from infinity_jax.inference.sampling import GenerationSettings
from infinity_jax.scales import ScaleSchedule
from infinity_jax.training.flops import transformer_forward
from infinity_jax.training.transformer.loss import bit_loss, token_losses
from infinity_jax.transformer.index_classifier import (
    bits_from_indices,
    indices_from_bits,
    likely_indices,
    sample_indices,
)
from infinity_jax.transformer.model import Transformer, transformer_shapes
from infinity_jax.weights.model_folder import load_model, save_model

INDEX = dataclasses.replace(TRANSFORMER, classifier='index')


def test_the_first_bit_is_the_lowest_and_every_index_has_its_own_bits():
    assert indices_from_bits(jnp.array([[1, 0, 0], [0, 1, 1]])).tolist() == [1, 6]
    indices = jnp.arange(2**10)
    bits = bits_from_indices(indices, 10)
    assert bits.shape == (1024, 10) and bits.dtype == bool
    assert len(np.unique(bits, axis=0)) == 1024
    np.testing.assert_array_equal(indices_from_bits(bits), indices)


@pytest.mark.numeric
def test_loss_is_the_cross_entropy_of_the_index_per_bit():
    rng = np.random.default_rng(0)
    schedule = ScaleSchedule.free(((1, 1), (2, 2)))
    logits = 3 * rng.standard_normal((2, 5, 16)).astype(np.float32)
    targets = rng.random((2, 5, 4)) < 0.4
    wanted = np.zeros((2, 5))
    for image in range(2):
        for token in range(5):
            exact = logits[image, token].astype(np.float64)
            index = sum(2**p for p in range(4) if targets[image, token, p])
            wanted[image, token] = (np.log(np.exp(exact).sum()) - exact[index]) / 4
    np.testing.assert_allclose(token_losses(logits, jnp.asarray(targets)), wanted, rtol=1e-5)
    loss, metrics = bit_loss(jnp.asarray(logits), jnp.asarray(targets), schedule, reweight=False)
    np.testing.assert_allclose(loss, wanted.mean(), rtol=1e-5)
    best = logits.argmax(-1)
    right = [[[(best[i, t] >> p) % 2 == targets[i, t, p] for p in range(4)] for t in range(5)]
             for i in range(2)]  # fmt: skip
    accuracy = np.array(right).mean((0, 2))
    np.testing.assert_allclose(metrics.accuracy, [accuracy[0], accuracy[1:].mean()], rtol=1e-6)


@pytest.mark.numeric
def test_independent_bits_cost_the_same_in_both_classifiers():
    rng = np.random.default_rng(1)
    pairs = rng.standard_normal((2, 3, 4, 2)).astype(np.float32)
    codes = np.asarray(bits_from_indices(jnp.arange(16), 4)).astype(int)
    joint = np.stack(
        [pairs[:, :, np.arange(4), code].sum(-1) for code in codes], axis=-1
    )  # (2, 3, 16)
    targets = jnp.asarray(rng.random((2, 3, 4)) < 0.5)
    of_index, of_bits = token_losses(joint, targets), token_losses(pairs, targets)
    np.testing.assert_allclose(of_index, of_bits, rtol=1e-5)


def test_top_k_and_top_p_keep_the_likeliest_indices():
    logits = jnp.log(jnp.array([0.1, 0.5, 0.15, 0.25]))
    kept = lambda k, p: np.flatnonzero(np.isfinite(likely_indices(logits, k, p))).tolist()
    assert kept(0, 1.0) == [0, 1, 2, 3]
    assert kept(1, 1.0) == [1] and kept(2, 1.0) == [1, 3]
    assert kept(0, 0.6) == [1, 3]  # 0.5 is less than 0.6, 0.75 is not
    assert kept(0, 0.8) == [1, 2, 3] and kept(0, 1e-3) == [1]


@pytest.mark.numeric
def test_indices_come_with_the_probability_of_their_softmax():
    wanted = np.array([0.1, 0.5, 0.15, 0.25])
    logits = jnp.broadcast_to(jnp.log(jnp.asarray(wanted)), (2, 10_000, 4))
    samples = np.asarray(sample_indices(keys(2), logits))
    assert (samples[0] != samples[1]).any()
    rates = np.bincount(samples.ravel(), minlength=4) / samples.size
    np.testing.assert_allclose(rates, wanted, atol=4 * (0.25 / samples.size) ** 0.5)


@functools.partial(jax.jit, static_argnames='settings', compiler_options=QUICK_COMPILE)
def generate(variables, inputs, settings):
    return generate_bits(Transformer(INDEX), variables, inputs, settings, keep_logits=True)


@pytest.mark.numeric
@pytest.mark.parametrize('greedy', ['temperature', 'top_k'])
def test_cold_generation_takes_the_likeliest_index_of_each_token(greedy):
    cold = greedy == 'temperature'
    numbers = sampling_numbers((1.0, 3.0, 2.0), 1e-6 if cold else 1.0)
    settings = GenerationSettings(GRIDS, top_p=1.0, top_k=0 if cold else 1)
    inputs = generation_inputs(numbers=numbers)
    generated = generate(transformer_variables(INDEX), inputs, settings)
    seen = set()
    for bits, logits, (h, w) in zip(generated.bits, generated.logits, GRIDS.grids, strict=True):
        assert logits.shape == (3, h * w, 2**INDEX.bits)
        indices = np.asarray(indices_from_bits(bits)).reshape(3, -1)
        np.testing.assert_array_equal(indices, np.asarray(logits).argmax(-1))
        seen |= {*indices.ravel().tolist()}
    assert len(seen) > 2


def test_the_head_alone_grows_with_the_number_of_indices():
    config = TransformerConfig(2, 32, 2, bits=10, text_channels=16, dtype='float32')
    shapes = {
        kind: transformer_shapes(dataclasses.replace(config, classifier=kind))
        for kind in ('bits', 'index')
    }
    assert shapes['bits'].pop('head')['kernel'].shape == (32, 20)
    assert shapes['index'].pop('head')['kernel'].shape == (32, 1024)
    assert shapes['bits'] == shapes['index']
    of_bits, of_index = (
        transformer_forward(dataclasses.replace(config, classifier=kind), GRIDS, 1, 8)
        for kind in ('bits', 'index')
    )
    assert of_index.head - of_bits.head == 2 * 32 * (1024 - 20) * GRIDS.num_tokens
    assert dataclasses.replace(of_index, head=0) == dataclasses.replace(of_bits, head=0)


def test_a_model_folder_keeps_the_classifier_and_other_uses_refuse_it_by_name(tmp_path):
    loaded = model_of(
        transformer_config=INDEX,
        transformer_params=transformer_variables(INDEX)['params'],
        tokenizer_config=TOKENIZER,
        tokenizer_params=tokenizer_variables()['params'],
        schedule=GRIDS,
    )
    save_model(tmp_path / 'm', loaded)
    assert load_model(tmp_path / 'm').configs.transformer == INDEX
    with pytest.raises(UserError, match="m: transformer.classifier is 'index', which the released"):
        to_torch_files(tmp_path / 'm', tmp_path / 'torch')
    placed = types.SimpleNamespace(configs=loaded.configs, read_tokenizer=None, mesh=None)
    editor = ImageEditor(placed, GRIDS, None, None)
    with pytest.raises(UserError, match="classifier of this model is 'index'; editing compares"):
        editor.edit([Edit(np.zeros((8, 8, 3), np.uint8), 'a')], [(0, 0)])
