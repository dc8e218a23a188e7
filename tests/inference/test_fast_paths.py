"""Every fast way of generation equals the plain one: the masked forward of training, uncached."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.generation import keys
from helpers.tiny import QUICK_COMPILE, TRANSFORMER, text, transformer_variables

from infinity_jax.inference.cpu_layerwise import LayerWeights, generate_bits_layerwise
from infinity_jax.inference.generate import generate_bits
from infinity_jax.inference.sampling import GenerationSettings, SamplingConfig
from infinity_jax.inference.scale_steps import GenerationInputs, Text
from infinity_jax.scales import RATIOS, ScaleSchedule
from infinity_jax.tokenizer.quantizer import accumulate, codes_from_bits, flatten_tokens, next_input
from infinity_jax.transformer import attention_ops
from infinity_jax.transformer.model import Transformer

SMALL = dataclasses.replace(TRANSFORMER, depth=1, max_scales=3)
SAMPLING = SamplingConfig(guidance=(3.0,), temperature=(0.5,))

KEEP = {'keep_logits': True}

# From jax 0.12 on, XLA hands some products on a CPU to a library that rounds bfloat16 ten times as
# much (docs/speed.md). What rounds here is to be our program.
OWN_PRODUCTS = {'xla_cpu_experimental_ynn_fusion_type': ''}
ONCE = QUICK_COMPILE | (OWN_PRODUCTS if jax.__version_info__ >= (0, 12) else {})


def of_ratio(ratio):
    """Three scales of the 0.06M budget, of 1, up to 36 and up to 256 tokens."""
    grids = RATIOS[ratio]
    return ScaleSchedule((grids[0], grids[3], grids[6]), grids[-1])


def forced_bits(schedule, batch):
    rng = np.random.default_rng(3)
    return tuple(jnp.asarray(rng.random((batch, h, w, 4)) < 0.5) for h, w in schedule.grids)


@functools.partial(jax.jit, static_argnames='schedule', compiler_options=QUICK_COMPILE)
def plain(variables, bits, prompts, negative, schedule):
    """Logits of a whole image by the masked forward: with the text, and without or negative."""
    total, inputs = jnp.zeros(bits[-1].shape), []
    for scale, grid in enumerate(schedule.grids):
        if scale:
            inputs.append(flatten_tokens(next_input(total, grid), False))
        total = accumulate(total, codes_from_bits(bits[scale]))
    batch = len(prompts.lengths_B)
    other = prompts if negative is None else negative
    return Transformer(SMALL).apply(
        variables,
        *(jnp.concatenate(pair) for pair in zip(prompts, other, strict=True)),
        jnp.concatenate(2 * [jnp.concatenate(inputs, axis=1)]),
        schedule,
        drop_condition_B=jnp.arange(2 * batch) >= (batch if negative is None else 2 * batch),
    )


def one_program(model, inputs, settings, bits):
    run = functools.partial(generate_bits, model, settings=settings, **KEEP)
    jitted = jax.jit(run, compiler_options=ONCE)
    return jitted(transformer_variables(SMALL), inputs, forced_bits=bits)


def layerwise(model, inputs, settings, bits):
    weights = LayerWeights.of(transformer_variables(SMALL)['params'], SMALL.depth)
    return generate_bits_layerwise(model, weights, inputs, settings, forced_bits=bits, **KEEP)


def compare(generate, ratio, batch, guided=True, with_negative=False, dtype='float32'):
    """The largest error of logits over the largest logit, and the part of equal greedy bits."""
    schedule, prompts = of_ratio(ratio), Text(*text(batch))
    negative = Text(text(batch, seed=5)[0], prompts.lengths_B[::-1]) if with_negative else None
    bits = forced_bits(schedule, batch)
    inputs = GenerationInputs(keys(batch), prompts, SAMPLING.traced(schedule), negative)
    model = Transformer(dataclasses.replace(SMALL, dtype=dtype))
    settings = GenerationSettings(schedule, guided, top_k=1, top_p=1.0)
    generated = generate(model, inputs, settings, bits)
    conditional, unconditional = np.split(
        plain(transformer_variables(SMALL), bits, prompts, negative, schedule), 2
    )
    logits = (3 * conditional - 2 * unconditional if guided else conditional) / 0.5
    ours = np.concatenate(generated.logits, axis=1)
    greedy = np.concatenate(
        [np.asarray(b).reshape(batch, -1, SMALL.bits) for b in generated.bits], axis=1
    )
    error = np.abs(ours - logits).max() / np.abs(logits).max()
    return error, np.mean(greedy == np.asarray(logits[..., 1] > logits[..., 0]))


def assert_equal(*args, **options):
    error, equal = compare(*args, **options)
    assert error < 1e-5 and equal == 1


@pytest.mark.parametrize(('generate', 'ratio'), [(one_program, '0.571'), (layerwise, '1.250')])
def test_ratios(generate, ratio):
    """Two of 15; docs/speed.md has a run of all."""
    assert_equal(generate, ratio, 1)


@pytest.mark.parametrize(
    ('generate', 'batch', 'options'),
    [
        (one_program, 8, {'with_negative': True}),
        (one_program, 3, {'guided': False}),
        (layerwise, 8, {'with_negative': True}),
    ],
    ids=['negative', 'unguided', 'layerwise, negative'],
)
def test_batches(generate, batch, options):
    assert_equal(generate, '1.000', batch, **options)


def test_attention_in_chunks(monkeypatch):
    ratio, rows = '3.000', 2 * SMALL.num_heads
    assert_equal(one_program, ratio, 1)  # from here on `plain` is compiled, without chunks
    (h, w), tokens = of_ratio(ratio).grids[-1], of_ratio(ratio).num_tokens
    monkeypatch.setattr(attention_ops, 'MAX_SCORE_BYTES', 4 * rows * tokens * 64)
    assert attention_ops.chunk_length(rows, h * w, tokens) == 64 < h * w
    assert_equal(one_program, ratio, 1)


@pytest.mark.parametrize('generate', [one_program, layerwise])
def test_bfloat16_is_near(generate):
    """Against float32 and without guidance, which multiplies what rounding leaves."""
    error, equal = compare(generate, '1.000', 3, guided=False, dtype='bfloat16')
    assert 1e-4 < error < 0.02 and equal > 0.99
