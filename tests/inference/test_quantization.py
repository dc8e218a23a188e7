"""Scales without guidance run half the batch, and draw what guidance 1 would."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.generation import GRIDS as SCHEDULE
from helpers.generation import keys, settings, small_model
from helpers.tiny import QUICK_COMPILE, TRANSFORMER, text, transformer_variables

from infinity_jax.config import QuantizationConfig
from infinity_jax.errors import UserError
from infinity_jax.inference import generator as drawing_module
from infinity_jax.inference.cpu_layerwise import LayerWeights, generate_bits_layerwise
from infinity_jax.inference.generate import generate_bits, generate_images
from infinity_jax.inference.generator import goes_layerwise
from infinity_jax.inference.pipeline import InfinityPipeline
from infinity_jax.inference.scale_steps import Mode, Text
from infinity_jax.inference.warmup import Request, calls_for
from infinity_jax.tools.commands.generation_flags import quantization_of
from infinity_jax.transformer.model import Transformer


def drawing(guidance, quantization, guidance_layer=0):
    """The function that draws, with forced bits at every scale, and its arguments."""
    rng = np.random.default_rng(2)
    bits = tuple(jnp.asarray(rng.random((3, h, w, 4)) < 0.5) for h, w in SCHEDULE.grids)
    run = functools.partial(
        generate_bits,
        Transformer(TRANSFORMER),
        schedule=SCHEDULE,
        top_p=1.0,
        quantization=quantization,
        guidance_layer=guidance_layer,
        keep_logits=True,
    )
    arrays = {
        'variables': transformer_variables(),
        'keys_B': keys(),
        'text': Text(*text()),
        'controls': settings(guidance=guidance),
        'forced_bits': bits,
    }
    return run, arrays


def logits(*args):
    run, arrays = drawing(*args)
    return jax.jit(run, compiler_options=QUICK_COMPILE)(**arrays).logits


@pytest.mark.parametrize('layer', [0, -1])
def test_last_scales_without_guidance_equal_guidance_one(layer):
    unguided = logits((2.0, 3.0, 5.0), QuantizationConfig(unguided_scales=1), layer)
    at_one = logits((2.0, 3.0, 1.0), QuantizationConfig(), layer)
    for ours, wanted in zip(unguided, at_one, strict=True):
        np.testing.assert_allclose(ours, wanted, atol=2e-5 * np.abs(wanted).max())


def test_they_cost_half():
    def products(quantization):
        run, arrays = drawing((2.0, 3.0, 1.0), quantization)
        cost = jax.jit(run, compiler_options=QUICK_COMPILE).lower(**arrays).cost_analysis()
        return cost['flops']

    # Of 1 + 4 + 12 tokens the last scale has 12; text and heads weigh as much in so small a model.
    assert products(QuantizationConfig(unguided_scales=1)) < 0.85 * products(QuantizationConfig())


def test_more_unguided_scales_than_there_are_is_a_user_error():
    with pytest.raises(UserError, match='unguided_scales is 4; the image has 3 scales'):
        run, arrays = drawing((2.0, 3.0, 1.0), QuantizationConfig(unguided_scales=4))
        jax.eval_shape(run, **arrays)


def test_layer_by_layer_scales_without_guidance_are_the_same():
    quantization = QuantizationConfig(unguided_scales=1)
    _, arrays = drawing((2.0, 3.0, 5.0), quantization)
    variables = arrays.pop('variables')
    weights = LayerWeights.of(variables['params'], TRANSFORMER.depth)
    mode = Mode(top_p=1.0, quantization=quantization)
    model = Transformer(TRANSFORMER)
    drawn = generate_bits_layerwise(
        model, weights, **arrays, schedule=SCHEDULE, mode=mode, keep_logits=True
    )
    for ours, wanted in zip(drawn.logits, logits((2.0, 3.0, 5.0), quantization), strict=True):
        np.testing.assert_allclose(ours, wanted, atol=2e-5 * np.abs(wanted).max())


def test_a_cache_in_8_bits_is_not_drawn_layer_by_layer(monkeypatch):
    monkeypatch.setattr(drawing_module, 'LAYERWISE_BYTES', 0)
    params = transformer_variables()['params']
    assert goes_layerwise(params, QuantizationConfig()) and not goes_layerwise(
        params, QuantizationConfig(cache='int8')
    )


class Recorded:
    """Programs that are not run."""

    def __init__(self):
        self.calls = []

    def call(self, function, static, traced):
        self.calls.append((function, static, traced))
        if function is generate_images:
            return np.zeros((2, 6, 4, 3), np.uint8)
        return jnp.zeros((*traced['ids_BT'].shape, TRANSFORMER.text_channels))


@pytest.mark.parametrize(('prompts', 'num'), [(('a ghost', 'a cat'), 1), (('a ghost',), 2)])
def test_a_pipeline_draws_as_it_was_told(prompts, num):
    quantization = QuantizationConfig(weights='int8', cache='int8', unguided_scales=2)
    recorded = Recorded()
    pipeline = InfinityPipeline(
        small_model(), max_batch=2, quantization=quantization, programs=recorded
    )
    calls = recorded.calls
    pipeline(prompts, num=num)
    request = Request(prompts, num)
    wanted = calls_for(request, small_model(), small_model().schedule, 2, quantization)

    def shapes(tree):
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)

    assert len(calls) == len(wanted) == 2
    for (function, static, traced), announced in zip(calls, wanted, strict=True):
        assert function is announced.function and static == announced.static
        assert shapes(traced) == shapes(announced.shapes)
    assert calls[1][1]['quantization'] == quantization
    kernel = calls[1][2]['variables']['params']['blocks']['ffn']['up']['kernel']
    assert kernel.dtype == jnp.int8


def test_flags_say_what_is_saved():
    from infinity_jax.cli import build_parser

    parse = build_parser().parse_args
    assert quantization_of(parse(['generate', 'x'])) == QuantizationConfig()
    flags = ['--weights', 'int8', '--cache', 'int8', '--unguided-scales', '2']
    assert quantization_of(parse(['compile', *flags])) == QuantizationConfig('int8', 'int8', 2)
