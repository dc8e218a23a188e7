import dataclasses
import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.generation import GRIDS as SCHEDULE
from helpers.generation import (
    GUIDANCE,
    TEMPERATURE,
    generation_inputs,
    keys,
    sampling_numbers,
)
from helpers.tiny import (
    QUICK_COMPILE,
    TOKENIZER,
    TRANSFORMER,
    text,
    tokenizer_variables,
    transformer_variables,
)

from infinity_jax import sharding
from infinity_jax.errors import UserError
from infinity_jax.images import to_uint8
from infinity_jax.inference.generate import (
    NetworkParams,
    Networks,
    generate_bits,
    generate_images,
)
from infinity_jax.inference.sampling import GenerationSettings, SamplingConfig, SamplingNumbers
from infinity_jax.inference.scale_steps import GenerationInputs, Text
from infinity_jax.tokenizer.autoencoder import Autoencoder
from infinity_jax.tokenizer.quantizer import (
    accumulate,
    codes_from_bits,
    flatten_tokens,
    next_input,
    total_from_bits,
)
from infinity_jax.transformer.attention_ops import prefix_attention, query_groups
from infinity_jax.transformer.block import Block
from infinity_jax.transformer.model import Transformer
from infinity_jax.transformer.rope import rope_table

PATCHIFY = dataclasses.replace(TRANSFORMER, bits=2, spatial_patchify=True)
SAMPLING = SamplingConfig()
WHOLE = GenerationSettings(SCHEDULE, top_p=1.0)


@functools.partial(jax.jit, static_argnames=('settings', 'config'), compiler_options=QUICK_COMPILE)
def generate(variables, inputs, settings=WHOLE, config=TRANSFORMER, forced_bits=None):
    return generate_bits(
        Transformer(config), variables, inputs, settings, forced_bits=forced_bits, keep_logits=True
    )


@functools.partial(jax.jit, static_argnames='config', compiler_options=QUICK_COMPILE)
def uncached(variables, bits, prompts, dropped=None, config=TRANSFORMER):
    """Trace of the masked training forward on the inputs that these bits give."""
    total, inputs = jnp.zeros(bits[-1].shape), []
    for scale, grid in enumerate(SCHEDULE.code_grids(config.spatial_patchify)):
        if scale:
            inputs.append(flatten_tokens(next_input(total, grid), config.spatial_patchify))
        total = accumulate(total, codes_from_bits(bits[scale]))
    return Transformer(config).apply(
        variables,
        *prompts,
        jnp.concatenate(inputs, axis=1),
        SCHEDULE,
        drop_condition_B=dropped,
        method='trace',
    )


def per_token(numbers):
    """One number per scale as (1, L, 1, 1)."""
    return np.asarray(numbers, np.float32)[SCHEDULE.scale_of_token][None, :, None, None]


def joined(generated):
    return np.concatenate(generated.logits, axis=1)


def assert_close(ours, wanted):
    np.testing.assert_allclose(ours, wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize('config', [TRANSFORMER, PATCHIFY], ids=['plain', 'patchify'])
def test_guided_cached_generation_equals_two_uncached_forwards(config):
    variables, prompts = transformer_variables(config), Text(*text())
    generated = generate(variables, generation_inputs(prompts), config=config)
    grids = SCHEDULE.code_grids(config.spatial_patchify)
    assert [b.shape for b in generated.bits] == [(3, h, w, config.bits) for h, w in grids]
    np.testing.assert_allclose(generated.total_Bhwd, total_from_bits(generated.bits), atol=1e-6)
    with_text = uncached(variables, generated.bits, prompts, config=config).logits
    dropped = jnp.ones(3, bool)
    without = uncached(variables, generated.bits, prompts, dropped, config=config).logits
    g = per_token(GUIDANCE)
    wanted = (g * with_text + (1 - g) * without) / per_token(TEMPERATURE)
    assert np.abs(wanted - with_text).max() > 0.1
    assert_close(joined(generated), wanted)


@functools.cache
def unguided():
    settings = dataclasses.replace(WHOLE, guided=False)
    return generate(transformer_variables(), generation_inputs(), settings)


def test_unguided_cached_generation_equals_the_uncached_forward():
    wanted = uncached(transformer_variables(), unguided().bits, Text(*text())).logits
    assert_close(joined(unguided()), wanted / per_token(TEMPERATURE))


@pytest.mark.parametrize('layer', [0, -1, -2])
def test_guidance_of_one_equals_no_guidance(layer):
    inputs = generation_inputs(numbers=sampling_numbers((1.0,)))
    settings = dataclasses.replace(WHOLE, guidance_layer=layer)
    generated = generate(transformer_variables(), inputs, settings)
    assert_close(joined(generated), joined(unguided()))
    for ours, wanted in zip(generated.bits, unguided().bits, strict=True):
        assert (ours == wanted).all()


@pytest.mark.parametrize('layer', [-1, -2])
def test_guidance_on_hidden_states(layer):
    """Mixed after zero-based block depth + layer; the conditional half goes on to the head."""
    variables, prompts = transformer_variables(), Text(*text())
    settings = dataclasses.replace(WHOLE, guidance_layer=layer)
    generated = generate(variables, generation_inputs(prompts), settings)
    with_text = uncached(variables, generated.bits, prompts)
    without = uncached(variables, generated.bits, prompts, jnp.ones(3, bool))
    model = Transformer(TRANSFORMER)

    @functools.partial(jax.jit, compiler_options=QUICK_COMPILE)
    def finish(variables, x_BLD):
        condition = model.apply(variables, *prompts, method='encode_text')
        for i in range(TRANSFORMER.depth + layer + 1, TRANSFORMER.depth):
            block = Block(TRANSFORMER)
            params = jax.tree.map(operator.itemgetter(i), variables['params']['blocks'])
            of_block = {'params': params}
            x_BLD, _ = block.apply(
                of_block,
                x_BLD,
                condition.modulation_B6D,
                rope_table(SCHEDULE, TRANSFORMER.head_dim),
                block.apply(of_block, condition.context_BTD, method='text_keys_values'),
                condition.lengths_B,
                lambda q, k, v: prefix_attention(q, k, v, query_groups(SCHEDULE)),
            )
        return model.apply(variables, x_BLD, condition, method='logits')

    g = per_token(GUIDANCE)[..., 0]
    mixed = g * with_text.blocks[layer] + (1 - g) * without.blocks[layer]
    assert_close(joined(generated), finish(variables, mixed) / per_token(TEMPERATURE))


def test_negative_text_replaces_the_learned_unconditional_one():
    variables, prompts = transformer_variables(), Text(*text())
    negative = Text(text(seed=5)[0], jnp.array([4, 1, 8]))
    generated = generate(variables, generation_inputs(prompts, negative))
    with_text = uncached(variables, generated.bits, prompts).logits
    without = uncached(variables, generated.bits, negative).logits
    g = per_token(GUIDANCE)
    wanted = (g * with_text + (1 - g) * without) / per_token(TEMPERATURE)
    assert_close(joined(generated), wanted)


def test_later_scales_see_the_forced_bits():
    forced = unguided().bits
    settings = GenerationSettings(SCHEDULE, guided=False, top_k=1)
    inputs = generation_inputs(seed=7)
    generated = generate(transformer_variables(), inputs, settings, forced_bits=forced)
    assert_close(generated.total_Bhwd, np.asarray(unguided().total_Bhwd))
    margins = joined(unguided())[..., 1] - joined(unguided())[..., 0]
    bits = np.concatenate([b.reshape(3, -1, 4) for b in generated.bits], axis=1)
    assert (bits == (margins > 0)).all()  # greedy, and not what was forced
    assert any((a != b).any() for a, b in zip(generated.bits, forced, strict=True))


def test_flips_are_part_of_the_image_and_seen_by_later_scales():
    variables, prompts = transformer_variables(), Text(*text())
    greedy = dataclasses.replace(WHOLE, guided=False, top_k=1)
    inputs = generation_inputs(prompts)._replace(flip_rate=jnp.float32(1))
    generated = generate(variables, inputs, greedy)
    last = len(SCHEDULE) - 1
    for scale, (bits, logits) in enumerate(zip(generated.bits, generated.logits, strict=True)):
        likelier = logits[..., 1] > logits[..., 0]
        assert (bits.reshape(likelier.shape) == (likelier if scale == last else ~likelier)).all()
    np.testing.assert_allclose(generated.total_Bhwd, total_from_bits(generated.bits), atol=1e-6)
    wanted = uncached(variables, generated.bits, prompts).logits
    assert_close(joined(generated), wanted / per_token(TEMPERATURE))


def test_without_flips_all_random_numbers_are_as_before():
    inputs = generation_inputs()
    generated = generate(transformer_variables(), inputs._replace(flip_rate=jnp.float32(0)))
    for ours, wanted in zip(
        generated.bits, generate(transformer_variables(), inputs).bits, strict=True
    ):
        assert (ours == wanted).all()


def test_an_image_does_not_depend_on_its_batch():
    variables, (features, lengths) = transformer_variables(), text()
    together = generate(variables, generation_inputs(Text(features, lengths)))
    one = Text(features[1:2], lengths[1:2])
    inputs = GenerationInputs(keys()[1:2], one, sampling_numbers())
    alone = generate(variables, inputs)
    for ours, wanted in zip(alone.bits, together.bits, strict=True):
        assert (ours[0] == wanted[1]).all()
    assert any((bits[0] != bits[1]).any() for bits in together.bits)


def images(seed=0, lengths=(5, 8, 2), sampling=SAMPLING):
    """Three images; text features are random, of the given lengths."""
    prompts = Text(text(seed=seed)[0], jnp.asarray(lengths, jnp.int32))
    return generate_images(
        Networks(Transformer(TRANSFORMER), Autoencoder(TOKENIZER)),
        NetworkParams(transformer_variables()['params'], tokenizer_variables()['params']),
        generation_inputs(prompts, numbers=sampling.traced(SCHEDULE), seed=seed),
        sampling.static(SCHEDULE),
    )


def test_prompts_seeds_and_numbers_do_not_recompile():
    first = images()
    assert first.shape == (3, 8, 6, 3) and first.dtype == jnp.uint8
    compiled = generate_images.compiled()
    again = images()
    assert (first == again).all()
    assert (images(seed=1) != first).any()
    images(lengths=(1, 3, 7))
    images(sampling=SamplingConfig(guidance=(5.0,), temperature=(0.3,)))
    images(sampling=SamplingConfig(guidance=GUIDANCE, temperature=TEMPERATURE))
    assert generate_images.compiled() == compiled > 0


def test_a_tpu_gets_compiler_options(monkeypatch):
    monkeypatch.setattr(sharding, 'target_kind', lambda: 'TPU v5 lite')
    # The compiler is a CPU's here: it says what it is asked for, and that all before it went well.
    with pytest.raises(jax.errors.JaxRuntimeError, match='xla_tpu_scoped_vmem_limit_kib'):
        images(seed=2)


def test_grey_levels_are_clamped_and_truncated():
    levels = to_uint8(jnp.array([-7.0, -1.0, -0.999, 0.0, 0.9999, 1.0, 3.0]))
    assert levels.dtype == jnp.uint8
    assert levels.tolist() == [0, 0, 0, 127, 254, 255, 255]


def test_a_guidance_layer_that_does_not_exist_is_a_user_error():
    settings = GenerationSettings(SCHEDULE, guidance_layer=-3)
    with pytest.raises(UserError, match='guidance layer -3 does not exist; the model has 2'):
        jax.eval_shape(lambda: generate(transformer_variables(), generation_inputs(), settings))


def test_sampling_numbers_are_one_per_scale():
    numbers = SamplingConfig(guidance=(2.0,), temperature=TEMPERATURE).traced(SCHEDULE)
    assert isinstance(numbers, SamplingNumbers)
    assert numbers.guidance_K.tolist() == [2.0] * 3
    np.testing.assert_allclose(numbers.temperature_K, TEMPERATURE)
    with pytest.raises(UserError, match='temperature lists 2 numbers for 3 scales'):
        SamplingConfig(temperature=(1.0, 2.0)).traced(SCHEDULE)
