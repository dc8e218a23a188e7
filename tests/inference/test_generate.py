import dataclasses
import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.generation import GRIDS as SCHEDULE
from helpers.generation import GUIDANCE, TEMPERATURE, keys, settings
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
from infinity_jax.inference.generate import generate_bits, generate_images
from infinity_jax.inference.sampling import SamplingConfig
from infinity_jax.inference.scale_steps import Controls, Text, controls
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
STATIC = ('config', 'guided', 'guidance_layer')


@functools.partial(jax.jit, static_argnames=STATIC, compiler_options=QUICK_COMPILE)
def draw(
    variables,
    keys_B,
    prompts,
    numbers,
    negative=None,
    config=TRANSFORMER,
    guided=True,
    guidance_layer=0,
):
    return generate_bits(
        Transformer(config),
        variables,
        keys_B,
        prompts,
        numbers,
        SCHEDULE,
        negative=negative,
        guided=guided,
        guidance_layer=guidance_layer,
        top_p=1.0,
        keep_logits=True,
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
    """One number a scale as (1, L, 1, 1)."""
    return np.asarray(numbers, np.float32)[SCHEDULE.scale_of_token][None, :, None, None]


def joined(drawn):
    return np.concatenate(drawn.logits, axis=1)


def assert_close(ours, wanted):
    np.testing.assert_allclose(ours, wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize('config', [TRANSFORMER, PATCHIFY], ids=['plain', 'patchify'])
def test_guided_cached_generation_equals_two_uncached_forwards(config):
    variables, prompts = transformer_variables(config), Text(*text())
    drawn = draw(variables, keys(), prompts, settings(), config=config)
    grids = SCHEDULE.code_grids(config.spatial_patchify)
    assert [b.shape for b in drawn.bits] == [(3, h, w, config.bits) for h, w in grids]
    np.testing.assert_allclose(drawn.total_Bhwd, total_from_bits(drawn.bits), atol=1e-6)
    with_text = uncached(variables, drawn.bits, prompts, config=config).logits
    dropped = jnp.ones(3, bool)
    without = uncached(variables, drawn.bits, prompts, dropped, config=config).logits
    g = per_token(GUIDANCE)
    wanted = (g * with_text + (1 - g) * without) / per_token(TEMPERATURE)
    assert np.abs(wanted - with_text).max() > 0.1
    assert_close(joined(drawn), wanted)


@functools.cache
def unguided():
    variables, prompts = transformer_variables(), Text(*text())
    return draw(variables, keys(), prompts, settings(), guided=False)


def test_unguided_cached_generation_equals_the_uncached_forward():
    wanted = uncached(transformer_variables(), unguided().bits, Text(*text())).logits
    assert_close(joined(unguided()), wanted / per_token(TEMPERATURE))


@pytest.mark.parametrize('layer', [0, -1, -2])
def test_guidance_of_one_equals_no_guidance(layer):
    variables, prompts = transformer_variables(), Text(*text())
    drawn = draw(variables, keys(), prompts, settings((1.0,)), guidance_layer=layer)
    assert_close(joined(drawn), joined(unguided()))
    for ours, wanted in zip(drawn.bits, unguided().bits, strict=True):
        assert (ours == wanted).all()


@pytest.mark.parametrize('layer', [-1, -2])
def test_guidance_on_hidden_states(layer):
    """Mixed after zero-based block depth + layer; the conditional half goes on to the head."""
    variables, prompts = transformer_variables(), Text(*text())
    drawn = draw(variables, keys(), prompts, settings(), guidance_layer=layer)
    with_text = uncached(variables, drawn.bits, prompts)
    without = uncached(variables, drawn.bits, prompts, jnp.ones(3, bool))
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
    assert_close(joined(drawn), finish(variables, mixed) / per_token(TEMPERATURE))


def test_negative_text_replaces_the_learned_unconditional_one():
    variables, prompts = transformer_variables(), Text(*text())
    negative = Text(text(seed=5)[0], jnp.array([4, 1, 8]))
    drawn = draw(variables, keys(), prompts, settings(), negative)
    with_text = uncached(variables, drawn.bits, prompts).logits
    without = uncached(variables, drawn.bits, negative).logits
    g = per_token(GUIDANCE)
    wanted = (g * with_text + (1 - g) * without) / per_token(TEMPERATURE)
    assert_close(joined(drawn), wanted)


def test_forced_bits_are_what_later_scales_see():
    variables, prompts = transformer_variables(), Text(*text())
    forced = unguided().bits

    @functools.partial(jax.jit, compiler_options=QUICK_COMPILE)
    def run(keys_B, forced):
        return generate_bits(
            Transformer(TRANSFORMER),
            variables,
            keys_B,
            prompts,
            settings(),
            SCHEDULE,
            guided=False,
            top_k=1,
            forced_bits=forced,
            keep_logits=True,
        )

    drawn = run(keys(seed=7), forced)
    assert_close(drawn.total_Bhwd, np.asarray(unguided().total_Bhwd))
    margins = joined(unguided())[..., 1] - joined(unguided())[..., 0]
    bits = np.concatenate([b.reshape(3, -1, 4) for b in drawn.bits], axis=1)
    assert (bits == (margins > 0)).all()  # greedy, and not what was forced
    assert any((a != b).any() for a, b in zip(drawn.bits, forced, strict=True))


def test_a_image_is_the_same_whatever_the_batch():
    variables, (features, lengths) = transformer_variables(), text()
    together = draw(variables, keys(), Text(features, lengths), settings())
    one = Text(features[1:2], lengths[1:2])
    alone = draw(variables, keys()[1:2], one, settings())
    for ours, wanted in zip(alone.bits, together.bits, strict=True):
        assert (ours[0] == wanted[1]).all()
    assert any((bits[0] != bits[1]).any() for bits in together.bits)


def images(seed=0, lengths=(5, 8, 2), sampling=SAMPLING, **options):
    """Three images; text features are random, of the given lengths."""
    return generate_images(
        Transformer(TRANSFORMER),
        Autoencoder(TOKENIZER),
        transformer_variables(),
        tokenizer_variables(),
        keys(seed=seed),
        Text(text(seed=seed)[0], jnp.asarray(lengths, jnp.int32)),
        controls(sampling, SCHEDULE),
        SCHEDULE,
        **options,
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
    with pytest.raises(UserError, match='guidance layer -3 does not exist; the model has 2'):
        jax.eval_shape(
            lambda: draw(
                transformer_variables(), keys(), Text(*text()), settings(), guidance_layer=-3
            )
        )


def test_controls_hold_one_number_a_scale():
    numbers = controls(SamplingConfig(guidance=(2.0,), temperature=TEMPERATURE), SCHEDULE)
    assert isinstance(numbers, Controls)
    assert numbers.guidance_K.tolist() == [2.0] * 3
    np.testing.assert_allclose(numbers.temperature_K, TEMPERATURE)
    with pytest.raises(UserError, match='temperature lists 2 numbers for 3 scales'):
        controls(SamplingConfig(temperature=(1.0, 2.0)), SCHEDULE)
