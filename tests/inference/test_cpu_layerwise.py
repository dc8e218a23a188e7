"""Generation layer by layer equals the one program, and both the released implementation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.generation import keys
from helpers.paths import GOLDEN
from helpers.tiny import QUICK_COMPILE, TOKENIZER, TRANSFORMER, text, tokenizer_variables
from helpers.tiny import transformer_variables as variables_of

from infinity_jax.errors import UserError
from infinity_jax.inference.cpu_layerwise import LayerWeights, generate_bits_layerwise
from infinity_jax.inference.generate import NetworkParams, Networks, generate_bits
from infinity_jax.inference.generator import Generator
from infinity_jax.inference.sampling import GenerationSettings, SamplingConfig
from infinity_jax.inference.scale_steps import GenerationInputs, Text
from infinity_jax.scales import ScaleSchedule
from infinity_jax.tokenizer.autoencoder import Autoencoder
from infinity_jax.tools.parity.reference import load_reference
from infinity_jax.transformer.model import Transformer

SCHEDULE = ScaleSchedule.free(((1, 1), (3, 2)))
MODEL = Transformer(TRANSFORMER)
NUMBERS = SamplingConfig(guidance=(1.0, 3.0), temperature=(0.5, 0.8)).traced(SCHEDULE)
DEFAULT = GenerationSettings(SCHEDULE)


@functools.partial(jax.jit, static_argnames='settings', compiler_options=QUICK_COMPILE)
def one_program(variables, inputs, settings, forced=None):
    return generate_bits(MODEL, variables, inputs, settings, forced_bits=forced, keep_logits=True)


@functools.cache
def layers():
    return LayerWeights.of(variables_of()['params'], TRANSFORMER.depth)


def layerwise(inputs, settings, forced=None):
    return generate_bits_layerwise(
        MODEL, layers(), inputs, settings, forced_bits=forced, keep_logits=True
    )


def inputs_of(prompts, batch):
    return GenerationInputs(keys(batch), prompts, NUMBERS)


def assert_same(ours, wanted):
    for mine, theirs in zip(ours.logits, wanted.logits, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())
    for mine, theirs in zip(ours.bits, wanted.bits, strict=True):
        assert (mine == theirs).all()
    np.testing.assert_allclose(ours.total_Bhwd, wanted.total_Bhwd, atol=1e-6)


def test_guidance_on_hidden_states_equals_the_one_program():
    """Other settings: test_fast_paths.py."""
    settings = GenerationSettings(SCHEDULE, guidance_layer=-2, top_k=1)
    inputs = inputs_of(Text(*text(1)), 1)
    wanted = one_program(variables_of(), inputs, settings)
    # Teacher-forced, or one bit that falls otherwise would change all later logits.
    assert_same(layerwise(inputs, settings, wanted.bits), wanted)


def test_flips_equal_those_of_the_one_program():
    inputs = inputs_of(Text(*text(1)), 1)._replace(flip_rate=jnp.float32(0.5))
    wanted = one_program(variables_of(), inputs, DEFAULT)
    assert_same(layerwise(inputs, DEFAULT, wanted.bits), wanted)
    unflipped = layerwise(inputs_of(Text(*text(1)), 1), DEFAULT)
    assert (wanted.bits[0] != unflipped.bits[0]).any()


@pytest.mark.parametrize('one', [True, False], ids=['one program', 'layerwise'])
def test_images_of_one_prompt_share_its_text(one):
    """Two prompts, two images each: the same as four prompts of which two are equal."""
    features, lengths = text(2)
    apart = Text(jnp.repeat(features, 2, axis=0), jnp.repeat(lengths, 2))
    run = functools.partial(one_program, variables_of()) if one else layerwise
    together = run(inputs_of(Text(features, lengths), 4), DEFAULT)
    wanted = one_program(variables_of(), inputs_of(apart, 4), DEFAULT, together.bits)
    assert_same(together, wanted)
    assert any((bits[0] != bits[1]).any() for bits in together.bits)


@pytest.mark.parametrize('folder', ['a_2b_style', 'b_8b_style'])
def test_greedy_bits_and_logits_are_those_of_the_released_implementation(folder):
    ref = load_reference(GOLDEN / folder)
    config, meta = ref.loaded.configs.transformer, ref.meta
    bits = tuple(jnp.asarray(b) for b in ref.scales('gen_bits'))
    sampling = SamplingConfig(
        guidance=tuple(map(float, meta['cfg'])),
        temperature=tuple(map(float, meta['tau'])),
        guidance_layer=meta['cfg_insertion_layer'][0],
        top_k=1,
        top_p=1.0,
    )
    generated = generate_bits_layerwise(
        Transformer(config),
        LayerWeights.of(ref.loaded.transformer_params, config.depth),
        GenerationInputs(
            keys(len(bits[0])),
            ref.text('text', int(ref.arrays['text_lens'].max())),
            sampling.traced(ref.schedule),
        ),
        sampling.static(ref.schedule),
        forced_bits=bits,
        keep_logits=True,
    )
    compared = 0
    for scale, (ours, theirs) in enumerate(zip(generated.bits, bits, strict=True)):
        assert (np.asarray(ours) == np.asarray(theirs).astype(bool)).all()
        name = f'gen_logits_{scale:02}'
        if name in ref.arrays:
            wanted = ref.arrays[name].reshape(generated.logits[scale].shape)
            error = np.abs(generated.logits[scale] - wanted).max() / np.abs(wanted).max()
            assert error < 1e-5
            compared += 1
    assert compared


def test_a_guidance_layer_that_does_not_exist_is_a_user_error():
    settings = GenerationSettings(SCHEDULE, guidance_layer=-3)
    with pytest.raises(UserError, match='guidance layer -3 does not exist'):
        layerwise(inputs_of(Text(*text()), 3), settings)


def test_a_generator_chooses_by_size_and_both_ways_generate_the_same():
    networks = Networks(MODEL, Autoencoder(TOKENIZER))
    params = NetworkParams(variables_of()['params'], tokenizer_variables()['params'])
    assert not Generator(networks, params).layerwise  # a small stack: one program starts sooner
    inputs = inputs_of(Text(*text()), 3)
    images = [
        Generator(networks, params, layerwise=layerwise)(inputs, DEFAULT)
        for layerwise in (False, True)
    ]
    assert images[0].dtype == jnp.uint8
    assert (np.abs(images[0].astype(int) - images[1].astype(int)) <= 1).mean() > 0.99


def test_layers_are_views_of_the_stack():
    stack = jnp.arange(3 * 16 * 32, dtype=jnp.float32).reshape(3, 16, 32)
    weights = LayerWeights.of({'blocks': {'kernel': stack}, 'head': 1}, 3)
    step = 16 * 32 * 4
    for i, layer in enumerate(weights.layers):
        assert (layer['kernel'] == stack[i]).all()
        start = layer['kernel'].unsafe_buffer_pointer()
        assert start == stack.unsafe_buffer_pointer() + i * step
    assert weights.rest == {'params': {'head': 1}}
