"""Analytic arithmetic against the published figures, and against what XLA and jax count."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest
from helpers import tiny
from jax.extend.core import jaxprs_in_params

from infinity_jax.config import PRESETS, TextConfig, TokenizerConfig, TransformerConfig
from infinity_jax.scales import ScaleSchedule
from infinity_jax.text.t5 import T5Encoder
from infinity_jax.tokenizer.autoencoder import Autoencoder, tokenizer_shapes
from infinity_jax.training import flops
from infinity_jax.transformer.model import Transformer, transformer_shapes
from infinity_jax.weights.t5_folder import encoder_shapes

TERA = 1e12
MEGAPIXEL = ScaleSchedule.for_image(1.0, '1M')
# Every scale after the first is above the size up to which scales share one masked product.
EXACT = ScaleSchedule.free(((1, 1), (12, 12), (16, 12)))
SMALL = TransformerConfig(
    depth=3, width=64, num_heads=2, bits=8, text_channels=256, text_length=16, dtype='float32'
)
BATCH, TEXT = 2, 16


def test_frozen_kernels_have_no_gradients_of_weights():
    forward = flops.transformer_forward(PRESETS['2b'], MEGAPIXEL, 2, 512)
    step = flops.training_step(PRESETS['2b'], MEGAPIXEL, 2, 512, frozen_kernels=True)
    assert step.matrices == 2 * forward.matrices and step.text == forward.text
    assert step.self_attention == 3 * forward.self_attention


def test_2b_at_1024_costs_what_the_paper_model_must():
    image = flops.generation(PRESETS['2b'], TokenizerConfig(), TextConfig(), MEGAPIXEL, 1, 512)
    assert image.matrices / TERA == pytest.approx(79, abs=0.5)
    assert image.self_attention / TERA == pytest.approx(36, abs=0.5)
    assert image.tokenizer / TERA == pytest.approx(9.8, abs=0.05)
    step = flops.training_step(PRESETS['2b'], MEGAPIXEL, 1, 512)
    assert (step.matrices + step.self_attention) / TERA == pytest.approx(172, abs=1)


def test_guidance_doubles_the_transformer_alone():
    parts = (PRESETS['8b'], TokenizerConfig(bits=14, channel_multipliers=(1, 2, 4, 4)))
    guided = flops.generation(*parts, TextConfig(), MEGAPIXEL, 3, 512)
    plain = flops.generation(*parts, TextConfig(), MEGAPIXEL, 3, 512, guided=False)
    assert guided.transformer == 2 * plain.transformer
    assert guided.total - guided.transformer == plain.total - plain.transformer


def test_parts_add_up():
    whole = flops.generation(PRESETS['2b'], TokenizerConfig(), TextConfig(), MEGAPIXEL, 2, 128)
    parts = (
        flops.text_encoder_forward(TextConfig(), 2, 128),
        flops.transformer_forward(PRESETS['2b'], MEGAPIXEL, 4, 128),  # guided
        flops.tokenizer_decode(TokenizerConfig(), 1024, 1024, 2),
    )
    assert whole.total == pytest.approx(sum(part.total for part in parts))
    assert (whole + whole).total == pytest.approx((whole * 2).total)


def products(function, *args):
    """FLOP of all matrix products and convolutions in a traced function, loops counted in full."""

    def count(jaxpr):
        total = 0
        for eqn in jaxpr.eqns:
            repeat = eqn.params['length'] if eqn.primitive.name == 'scan' else 1
            inner = [count(j) for j in jaxprs_in_params(eqn.params)]
            # Of the forms of an upsampling the dearest is its definition.
            total += repeat * (max(inner) if eqn.primitive.name == 'cond' else sum(inner))
            out = math.prod(eqn.outvars[0].aval.shape) if eqn.outvars else 0
            if eqn.primitive.name == 'dot_general':
                (contracted, _), _ = eqn.params['dimension_numbers']
                shape = eqn.invars[0].aval.shape
                total += 2 * out * math.prod(shape[axis] for axis in contracted)
            elif eqn.primitive.name == 'conv_general_dilated':
                kernel = eqn.invars[1].aval.shape  # (h, w, in, out)
                total += 2 * out * math.prod(kernel[:-1])
        return total

    return count(jax.make_jaxpr(function)(*args).jaxpr)


def transformer_arguments(config):
    shape = jax.ShapeDtypeStruct
    return (
        {'params': transformer_shapes(config)},
        shape((BATCH, TEXT, config.text_channels), jnp.float32),
        shape((BATCH,), jnp.int32),
        shape((BATCH, EXACT.num_tokens - 1, config.token_bits), jnp.float32),
    )


def forward(config):
    return lambda params, *rest: Transformer(config).apply(params, *rest, EXACT)


def test_transformer_forward_is_what_jax_traces():
    counted = products(forward(SMALL), *transformer_arguments(SMALL))
    assert flops.transformer_forward(SMALL, EXACT, BATCH, TEXT).total == counted


def test_text_encoder_is_what_jax_traces():
    config = dataclasses.replace(tiny.TEXT, vocab_size=32, num_layers=2)
    arguments = (
        {'params': encoder_shapes(config)},
        jax.ShapeDtypeStruct((BATCH, TEXT), jnp.int32),
        jax.ShapeDtypeStruct((BATCH,), jnp.int32),
    )
    counted = products(lambda *args: T5Encoder(config).apply(*args), *arguments)
    assert flops.text_encoder_forward(config, BATCH, TEXT).total == counted


@pytest.mark.parametrize(
    'config',
    [
        TokenizerConfig(bits=14, channel_multipliers=(1, 2, 4)),
        dataclasses.replace(tiny.TOKENIZER, decoder_blocks=4),
        TokenizerConfig(8, 16, (1,), unshuffle=8, norm_groups=8, kernel_size=1),
    ],
)
def test_tokenizer_is_what_jax_traces(config):
    variables, model = {'params': tokenizer_shapes(config)}, Autoencoder(config)
    pixels = jax.ShapeDtypeStruct((BATCH, 32, 48, 3), jnp.float32)
    features = jax.ShapeDtypeStruct(
        (BATCH, 32 // config.stride, 48 // config.stride, config.bits), jnp.float32
    )

    def traced(method, x):
        return products(lambda v, y: model.apply(v, y, method=method), variables, x)

    encode, decode = flops.tokenizer_encode, flops.tokenizer_decode
    assert encode(config, 32, 48, BATCH).total == traced(Autoencoder.encode, pixels)
    assert decode(config, 32, 48, BATCH).total == traced(Autoencoder.decode, features)


def test_xla_counts_the_same_for_one_layer():
    """One layer, as XLA counts a loop's body once; it counts little but products."""
    config = dataclasses.replace(SMALL, depth=1, width=256)
    arguments = transformer_arguments(config)
    run = forward(config)
    counted = jax.jit(run).lower(*arguments).cost_analysis()['flops']
    analytic = flops.transformer_forward(config, EXACT, BATCH, TEXT).total
    assert analytic == pytest.approx(counted, rel=0.04) and analytic < counted
    gradient = jax.grad(lambda *args: run(*args).mean())
    counted = jax.jit(gradient).lower(*arguments).cost_analysis()['flops']
    analytic = flops.training_step(config, EXACT, BATCH, TEXT).total
    assert analytic == pytest.approx(counted, rel=0.08)


def test_tokenizer_training_is_three_passes_both_ways():
    config = tiny.TOKENIZER
    passes = flops.tokenizer_encode(config, 32, 32, 4) + flops.tokenizer_decode(config, 32, 32, 4)
    assert flops.tokenizer_training_step(config, 32, 32, 4) == 3 * passes.total
    decoder = 3 * flops.tokenizer_decode(config, 32, 32, 4).total
    assert flops.tokenizer_training_step(config, 32, 32, 4, frozen_encoder=True) == decoder
