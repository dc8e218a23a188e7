"""The memory of generation is estimated before a weight is read."""

import dataclasses

import pytest
from helpers.tiny import QUICK_COMPILE

from infinity_jax.config import (
    PRESETS,
    ModelConfigs,
    QuantizationConfig,
    TextConfig,
    TokenizerConfig,
    TransformerConfig,
)
from infinity_jax.inference.memory import GB, describe, estimate_memory, on_one_device
from infinity_jax.inference.sampling import GenerationSettings
from infinity_jax.inference.warmup import BatchShape, calls_of
from infinity_jax.scales import ScaleSchedule

SQUARE = ScaleSchedule.for_image(1.0, '1M')
TOKENIZERS = {
    '2b': TokenizerConfig(),
    '8b': TokenizerConfig(bits=14, channel_multipliers=(1, 2, 4, 4)),
}


def estimate(
    name='2b',
    schedule=SQUARE,
    batch=1,
    guided=True,
    text_length=None,
    on_cpu=False,
    cpu_mesh=None,
    quantization=QuantizationConfig(),
    **changes,
):
    config = dataclasses.replace(PRESETS[name], **changes)
    return estimate_memory(
        ModelConfigs(config, TOKENIZERS[name], TextConfig(), schedule),
        batch,
        guided=guided,
        text_length=text_length,
        on_cpu=on_cpu,
        cpu_mesh=cpu_mesh or {},
        quantization=quantization,
    )


def test_cpu_devices_decode_at_the_same_time_in_one_memory():
    image = estimate(on_cpu=True).decoder
    assert estimate(batch=4, on_cpu=True).decoder == image  # one after the other
    assert estimate(batch=4, on_cpu=True, cpu_mesh={'data': 2, 'tensor': 2}).decoder == 4 * image


def test_2b_at_1024():
    parts = estimate()
    assert parts.transformer == pytest.approx(2.205e9 * 2, rel=0.03)  # bf16, its islands wider
    # Infinity's own figure is 5.5 GB with the last scale, which is 39 % of the tokens.
    assert parts.cache == pytest.approx(5.5e9 * 0.61, rel=0.02)
    assert parts.cache == 2 * 32 * 2 * (10521 - 4096) * 2048 * 2
    assert parts.text_encoder == pytest.approx(1.22e9 * 2, rel=0.1)
    assert parts.tokenizer < 0.6 * GB
    assert 10 * GB < parts.total() < 15 * GB
    assert parts.total() - parts.text_encoder < 10 * GB


def test_8b_at_1024():
    parts = estimate('8b')
    assert parts.transformer == pytest.approx(8.376e9 * 2, rel=0.03)
    assert parts.cache == 2 * 40 * 2 * (10521 - 4096) * 3584 * 2
    assert 25 * GB < parts.total() < 35 * GB


@pytest.mark.parametrize(('guided', 'rows'), [(True, 2), (False, 1)], ids=['guided', 'unguided'])
def test_8b_with_and_without_guidance(guided, rows):
    tokens, last, width, layers = 10521, 4096, 3584, 40  # of 1024²; the last scale is not cached
    parts = estimate('8b', guided=guided)
    assert parts.cache == 2 * layers * rows * (tokens - last) * width * 2  # 7.37 or 3.68 GB
    text = 2 * layers * rows * 512 * width * 2  # 0.59 or 0.29 GB
    streams = 6 * rows * last * width * 4  # 0.70 or 0.35
    prefix = 2 * rows * tokens * width * 2  # 0.30 or 0.15
    hidden = 2 * rows * last * 4 * width * 2  # 0.47 or 0.23
    # Scores of 192 queries at once, in float32 and 16 bits: 0.34, and less for two rows.
    largest = hidden if guided else 28 * 192 * tokens * 6
    assert parts.activations == text + streams + prefix + largest
    short = estimate('8b', guided=guided, text_length=64)
    assert parts.activations - short.activations == text * 7 // 8 and short.cache == parts.cache
    assert parts.decoder == estimate('8b', batch=4).decoder  # one image after the other
    assert parts.total() / GB == pytest.approx(29.3 if guided else 24.6, abs=0.1)


def test_the_estimate_bounds_a_compiled_program_without_guidance():
    sizes = {'bits': 4, 'text_channels': 64, 'text_length': 64, 'dtype': 'float32'}
    configs = ModelConfigs(
        TransformerConfig(depth=3, width=256, num_heads=4, **sizes),
        TokenizerConfig(4, 8, channel_multipliers=(1,), residual_blocks=1, norm_groups=4),
        TextConfig(64, width=64, num_layers=1, num_heads=2, head_dim=16, ffn_width=64, buckets=8),
        ScaleSchedule.free(((1, 1), (16, 16), (20, 20))),
    )
    settings = GenerationSettings(configs.schedule, guided=False)
    # As for a GPU: on a CPU a large model generates layer by layer.
    call = calls_of(configs, settings, BatchShape(4, 1, 32), platform='gpu')[-1]
    compiled = call.function.lower(**call.static, **call.shapes).compile(QUICK_COMPILE)
    memory = compiled.memory_analysis()
    needed = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    parts, guided = (
        estimate_memory(configs, 4, guided=guided, text_length=32, on_cpu=True)
        for guided in (False, True)
    )
    assert needed < parts.total() - parts.text_encoder < 1.2 * needed
    assert guided.total() - guided.text_encoder > 1.6 * needed


def test_what_makes_it_larger():
    small, whole = estimate(), estimate(batch=4)
    assert whole.cache == 4 * small.cache and whole.transformer == small.transformer
    assert whole.decoder == small.decoder  # one image after the other
    assert estimate(guided=False).cache == small.cache // 2
    assert estimate(dtype='float32').cache == 2 * small.cache
    assert estimate(dtype='float32').transformer == pytest.approx(2.205e9 * 4, rel=0.01)
    assert estimate(schedule=ScaleSchedule.for_image(1.0, '0.06M')).work < small.work / 8


def test_a_cpu_multiplies_16_bit_weights_in_float32():
    wide = estimate(on_cpu=True)
    assert wide.transformer == estimate().transformer and wide.cache == estimate().cache
    kernels = 2 * (estimate(dtype='float32').transformer - wide.transformer)
    assert wide.activations > estimate().activations + kernels
    exact = estimate(on_cpu=True, dtype='float32')
    assert exact == estimate(dtype='float32')


def test_an_offloaded_text_encoder_shares_its_room_with_generation():
    parts = estimate()
    assert parts.total() - parts.total(offload_text=True) == parts.text_encoder
    tiny = estimate(schedule=ScaleSchedule.free(((1, 1), (1, 1))))
    weights = tiny.transformer + tiny.tokenizer + tiny.text_encoder
    assert tiny.total(offload_text=True) == weights


def test_savings_have_fewer_bytes():
    full, weights = estimate(), estimate(quantization=QuantizationConfig(weights='int8'))
    assert full.transformer * 0.5 < weights.transformer < full.transformer * 0.55
    assert weights.cache == full.cache
    cache = estimate(quantization=QuantizationConfig(cache='int8'))
    assert cache.cache == full.cache * (1 + 4 / 128) / 2 and cache.transformer == full.transformer
    assert estimate('8b', quantization=QuantizationConfig(weights='int8')).total() < 22 * GB


def test_scores_are_taken_in_chunks():
    large = estimate(schedule=ScaleSchedule.free(((1, 1), (90, 90)))).activations
    rows_of_all = 2 * 16 * 8100 * 8101 * 6
    assert large < rows_of_all / 5


def test_devices_of_a_mesh_share_the_parts():
    one = estimate()
    shares = on_one_device(one, {'data': 2, 'fsdp': 2, 'tensor': 2})
    assert shares.transformer == one.transformer // 4 and shares.cache == one.cache // 2


def test_description_adds_up():
    assert describe(estimate()).startswith(f'{estimate().total() / GB:.1f} GB (transformer 4.')
