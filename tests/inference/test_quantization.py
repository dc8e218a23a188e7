"""Scales without guidance run half the batch, and generate what guidance 1 would."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.generation import GRIDS as SCHEDULE
from helpers.generation import generation_inputs, sampling_numbers, small_model
from helpers.tiny import QUICK_COMPILE, TRANSFORMER, transformer_variables

from infinity_jax.config import QuantizationConfig
from infinity_jax.errors import UserError
from infinity_jax.inference import generator as generator_module
from infinity_jax.inference.cpu_layerwise import LayerWeights, generate_bits_layerwise
from infinity_jax.inference.generate import generate_bits, generate_images
from infinity_jax.inference.generator import goes_layerwise
from infinity_jax.inference.pipeline import InfinityPipeline
from infinity_jax.inference.sampling import GenerationSettings, SamplingConfig
from infinity_jax.inference.warmup import GenerationRequest, calls_for
from infinity_jax.tools.commands.generation_flags import quantization_of, sampling_of
from infinity_jax.transformer.model import Transformer
from infinity_jax.weights.placement import place_model


def forced(guidance, unguided_scales, guidance_layer=0):
    """The function that generates, with forced bits at every scale, and its arguments."""
    rng = np.random.default_rng(2)
    bits = tuple(jnp.asarray(rng.random((3, h, w, 4)) < 0.5) for h, w in SCHEDULE.grids)
    settings = GenerationSettings(
        SCHEDULE, top_p=1.0, guidance_layer=guidance_layer, unguided_scales=unguided_scales
    )
    run = functools.partial(
        generate_bits, Transformer(TRANSFORMER), settings=settings, keep_logits=True
    )
    inputs = generation_inputs(numbers=sampling_numbers(guidance))
    return run, {'variables': transformer_variables(), 'inputs': inputs, 'forced_bits': bits}


def logits(*args):
    run, arrays = forced(*args)
    return jax.jit(run, compiler_options=QUICK_COMPILE)(**arrays).logits


@pytest.mark.parametrize('layer', [0, -1])
def test_last_scales_without_guidance_equal_guidance_one(layer):
    unguided = logits((2.0, 3.0, 5.0), 1, layer)
    at_one = logits((2.0, 3.0, 1.0), 0, layer)
    for ours, wanted in zip(unguided, at_one, strict=True):
        np.testing.assert_allclose(ours, wanted, atol=2e-5 * np.abs(wanted).max())


def test_they_cost_half():
    def products(unguided_scales):
        run, arrays = forced((2.0, 3.0, 1.0), unguided_scales)
        cost = jax.jit(run, compiler_options=QUICK_COMPILE).lower(**arrays).cost_analysis()
        return cost['flops']

    # Of 1 + 4 + 12 tokens the last scale has 12; text and heads weigh as much in so small a model.
    assert products(1) < 0.85 * products(0)


def test_more_unguided_scales_than_there_are_is_a_user_error():
    with pytest.raises(UserError, match='unguided_scales is 4; the image has 3 scales'):
        SamplingConfig(unguided_scales=4).static(SCHEDULE)


def test_layer_by_layer_scales_without_guidance_are_the_same():
    run, arrays = forced((2.0, 3.0, 5.0), 1)
    weights = LayerWeights.of(arrays.pop('variables')['params'], TRANSFORMER.depth)
    model = Transformer(TRANSFORMER)
    generated = generate_bits_layerwise(model, weights, **arrays, **run.keywords)
    for ours, wanted in zip(generated.logits, logits((2.0, 3.0, 5.0), 1), strict=True):
        np.testing.assert_allclose(ours, wanted, atol=2e-5 * np.abs(wanted).max())


def test_a_cache_in_8_bits_is_not_for_generation_layer_by_layer(monkeypatch):
    monkeypatch.setattr(generator_module, 'LAYERWISE_BYTES', 0)
    params = transformer_variables()['params']
    assert goes_layerwise(params, int8_cache=False)
    assert not goes_layerwise(params, int8_cache=True)


class Recorded:
    """Stands in for `Executables`: programs are recorded and not run."""

    def __init__(self):
        self.calls = []

    def call(self, function, static, traced):
        self.calls.append((function, static, traced))
        if function is generate_images:
            return np.zeros((2, 6, 4, 3), np.uint8)
        return jnp.zeros((*traced['ids_BT'].shape, TRANSFORMER.text_channels))


@pytest.mark.parametrize(('prompts', 'num'), [(('a ghost', 'a cat'), 1), (('a ghost',), 2)])
def test_a_pipeline_makes_the_calls_that_its_request_announces(prompts, num):
    quantization = QuantizationConfig(weights='int8', cache='int8')
    sampling = SamplingConfig(unguided_scales=2)
    recorded = Recorded()
    placed = place_model(small_model(), quantization)
    pipeline = InfinityPipeline(placed, max_batch=2, executables=recorded)
    calls = recorded.calls
    pipeline(prompts, num=num, sampling=sampling)
    request = GenerationRequest(prompts, num, sampling=sampling)
    wanted = calls_for(request, placed.configs, 2, quantization)

    def shapes(tree):
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)

    assert len(calls) == len(wanted) == 2
    for (function, static, traced), announced in zip(calls, wanted, strict=True):
        assert function is announced.function and static == announced.static
        assert shapes(traced) == shapes(announced.shapes)
    settings = calls[1][1]['settings']
    assert settings.int8_cache and settings.unguided_scales == 2
    kernel = calls[1][2]['params'].transformer['blocks']['ffn']['up']['kernel']
    assert kernel.dtype == jnp.int8


def test_flags_set_formats_and_unguided_scales():
    from infinity_jax.cli import build_parser

    parse = build_parser().parse_args
    automatic = QuantizationConfig('auto', 'auto')
    for command in (['generate', 'x'], ['edit', 'x.png', 'x'], ['serve'], ['compile']):
        assert quantization_of(parse(command)) == automatic
    for command in (['evaluate', 'demo'], ['plan', 'configs/t2i.py', '--topology', 'v5e:1x1']):
        assert quantization_of(parse(command)) == QuantizationConfig()
    assert quantization_of(parse(['generate', 'x', '--weights', 'full'])).weights == 'full'
    assert sampling_of(parse(['generate', 'x'])) == SamplingConfig()
    flags = ['--weights', 'int8', '--cache', 'int8', '--unguided-scales', '2']
    args = parse(['compile', *flags])
    assert quantization_of(args) == QuantizationConfig('int8', 'int8')
    assert sampling_of(args) == SamplingConfig(unguided_scales=2)


def test_the_old_keyword_for_unguided_scales_is_read_and_one_line_names_the_new_one(capsys):
    for _ in range(2):
        old = QuantizationConfig(unguided_scales=2)
    line = capsys.readouterr().err
    assert line.count('\n') == 1 and 'is now SamplingConfig(unguided_scales=...)' in line
    assert SamplingConfig().static(SCHEDULE, old) == SamplingConfig(unguided_scales=2).static(
        SCHEDULE
    )
    assert SamplingConfig(unguided_scales=1).static(SCHEDULE, old).unguided_scales == 1
