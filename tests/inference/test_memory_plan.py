"""How generation fits into the memory that there is, decided before a weight is read."""

import dataclasses
import types

import pytest

from infinity_jax.config import (
    PRESETS,
    ModelConfigs,
    QuantizationConfig,
    TextConfig,
    TokenizerConfig,
    released_tokenizer,
)
from infinity_jax.errors import UserError
from infinity_jax.inference import memory_plan
from infinity_jax.inference.memory import GB
from infinity_jax.inference.memory_plan import MemoryPlan, plan_memory
from infinity_jax.scales import ScaleSchedule
from infinity_jax.sharding import MeshConfig, make_mesh
from infinity_jax.tokenizer import tiled_decoder

SQUARE = ScaleSchedule.for_image(1.0, '1M')
AUTOMATIC = QuantizationConfig(weights='auto', cache='auto')
WEIGHTS = QuantizationConfig(weights='int8')
BOTH = QuantizationConfig(weights='int8', cache='int8')
USABLE = 0.9 * 2**30 / GB  # of a GB on a card's box, in GB of 10^9 bytes


def configs(name='2b', text_encoder='auto', **changes):
    transformer = dataclasses.replace(PRESETS[name], **changes)
    return ModelConfigs(
        transformer=transformer,
        tokenizer=released_tokenizer(transformer),
        text=TextConfig(),
        schedule=SQUARE,
        text_dtype='float16',
        text_encoder=text_encoder,
    )


def device(free_gb, kind='a card'):
    """An accelerator with so much memory, none of it in use."""
    stats = {'bytes_limit': int(free_gb * GB) + 1000, 'bytes_in_use': 1000}
    return types.SimpleNamespace(platform='gpu', device_kind=kind, memory_stats=lambda: stats)


@pytest.fixture
def accelerator(monkeypatch):
    monkeypatch.setattr(tiled_decoder, 'target_platform', lambda: 'gpu')

    def set_memory(free_gb):
        monkeypatch.setattr(memory_plan.jax, 'local_devices', lambda: [device(free_gb)])

    return set_memory


@pytest.mark.parametrize(
    ('free_gb', 'plan'),
    [
        (500, MemoryPlan(16, False)),
        (60, MemoryPlan(8, False)),
        (21, MemoryPlan(2, False)),
        (11, MemoryPlan(1, True)),
    ],
    ids=str,
)
def test_an_accelerator_generates_as_many_as_fit(accelerator, free_gb, plan, capsys):
    accelerator(free_gb)
    assert plan_memory(configs(), 16) == plan
    said = capsys.readouterr().err
    assert said.count('\n') == 1 and said.startswith('memory: about ')
    assert f'{plan.batch} of 1024 x 1024 pixels at once; there is {free_gb:.1f} GB' in said
    assert ('off the device once done' in said) == plan.offload_text


def test_weights_that_exceed_the_memory_are_not_helped_by_a_budget(accelerator):
    accelerator(2)
    with pytest.raises(UserError, match='use a smaller model, or use more devices'):
        plan_memory(configs(), 16)


@pytest.mark.parametrize(
    ('dtype', 'free_gb', 'advised'), [('float32', 12, True), ('bfloat16', 8, False)]
)
def test_what_cannot_fit_is_refused_with_the_numbers(accelerator, dtype, free_gb, advised):
    accelerator(free_gb)
    with pytest.raises(UserError, match='smaller --budget') as caught:
        plan_memory(configs(dtype=dtype), 16)
    message = str(caught.value)
    assert '\n' not in message and f'has {free_gb:.1f} GB free' in message
    assert 'transformer ' in message and message.startswith('1 of 1024 x 1024 pixels at once')
    assert ('--dtype bfloat16' in message) == advised


def test_bfloat16_is_not_advised_for_a_card_without_it(monkeypatch):
    monkeypatch.setattr(memory_plan.jax, 'local_devices', lambda: [device(12, 'Tesla T4')])
    with pytest.raises(UserError, match='smaller --budget, or use more devices'):
        plan_memory(configs(dtype='float32'), 1)


@pytest.mark.parametrize(
    ('name', 'card_gb', 'plan'),
    [
        ('2b', 12, MemoryPlan(1, False)),
        ('8b', 16, MemoryPlan(1, True, WEIGHTS)),
        ('8b', 24, MemoryPlan(1, True)),
    ],
    ids=str,
)
def test_without_guidance_less_is_given_up(accelerator, name, card_gb, plan, capsys):
    accelerator(card_gb * USABLE)
    guided = plan_memory(configs(name), 1, quantization=AUTOMATIC)
    assert 'without guidance' not in capsys.readouterr().err
    assert plan_memory(configs(name), 1, quantization=AUTOMATIC, guided=False) == plan != guided
    assert '1024 x 1024 pixels without guidance at once; there is' in capsys.readouterr().err


def test_without_guidance_the_decoder_needs_the_most(accelerator):
    accelerator(8 * USABLE)  # a compiled program of the 2b needs 8.21 GB
    options = {'quantization': AUTOMATIC, 'guided': False}
    assert plan_memory(configs(), 1, **options) == MemoryPlan(1, True, WEIGHTS)


def test_shorter_texts_leave_room(accelerator):
    accelerator(26.5)
    eight = {'max_batch': 1, 'quantization': AUTOMATIC}
    assert plan_memory(configs('8b'), **eight) == MemoryPlan(1, False, WEIGHTS)
    assert plan_memory(configs('8b'), **eight, text_length=64) == MemoryPlan(1, True)


def test_on_the_host_the_text_encoder_stays(monkeypatch):
    monkeypatch.setattr(memory_plan, 'free_bytes', lambda device: 24 * GB)
    assert plan_memory(configs(), 16) == MemoryPlan(1, False)
    monkeypatch.setattr(memory_plan, 'free_bytes', lambda device: 20 * GB)
    with pytest.raises(UserError, match='this machine has 20.0 GB free'):
        plan_memory(configs(), 16)


def test_unknown_memory_is_no_obstacle(monkeypatch, capsys):
    monkeypatch.setattr(memory_plan, 'free_bytes', lambda device: None)
    assert plan_memory(configs(), 16) == MemoryPlan(16, False)
    assert 'there is unknown' in capsys.readouterr().err


def test_nothing_is_printed_for_small_models(capsys):
    small = dataclasses.replace(PRESETS['125m'], depth=2, width=128, num_heads=2)
    text = TextConfig(vocab_size=100, num_layers=1)
    schedule = ScaleSchedule.free(((1, 1), (2, 2)))
    plan_memory(ModelConfigs(small, TokenizerConfig(), text, schedule), 16)
    assert capsys.readouterr().err == ''


def test_a_mesh_of_accelerators_shares_the_work(monkeypatch):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    shared = types.SimpleNamespace(shape=mesh.shape, local_devices=[device(10)])
    assert plan_memory(configs(), 16, shared) == MemoryPlan(8, False)
    shared.local_devices = [device(3)]
    with pytest.raises(UserError, match='4 of 1024 x 1024 pixels at once would need'):
        plan_memory(configs(), 16, shared)


@pytest.mark.parametrize(
    ('name', 'card_gb', 'plan'),
    [
        ('2b', 8, MemoryPlan(1, True, WEIGHTS)),
        ('2b', 12, MemoryPlan(1, True)),
        ('2b', 16, MemoryPlan(1, False)),
        ('2b', 24, MemoryPlan(1, False)),
        ('2b', 80, MemoryPlan(1, False)),
        ('8b', 8, None),
        ('8b', 12, None),
        ('8b', 16, MemoryPlan(1, True, BOTH)),
        ('8b', 24, MemoryPlan(1, False, WEIGHTS)),
        ('8b', 80, MemoryPlan(1, False)),
    ],
    ids=str,
)
def test_a_card_chooses_the_cheapest_way_that_fits(accelerator, name, card_gb, plan, capsys):
    accelerator(card_gb * USABLE)
    if plan is None:
        with pytest.raises(
            UserError, match='1 of 1024 x 1024 pixels at once would need about 14.9'
        ):
            plan_memory(configs(name), 1, quantization=AUTOMATIC)
        return
    assert plan_memory(configs(name), 1, quantization=AUTOMATIC) == plan
    said = capsys.readouterr().err
    assert said.count('\n') == 1 and f'there is {card_gb * USABLE:.1f} GB' in said
    flags = {
        '--text-encoder device': plan.offload_text,
        '--weights full': plan.quantization.weights == 'int8',
        '--cache full': plan.quantization.cache == 'int8',
    }
    assert {flag: flag in said for flag in flags} == flags
    assert ('otherwise' in said) == any(flags.values())


@pytest.mark.parametrize(
    ('asked', 'text_encoder', 'card_gb', 'plan'),
    [
        (
            QuantizationConfig(cache='auto'),
            'auto',
            9,
            MemoryPlan(1, True, QuantizationConfig(cache='int8')),
        ),
        (QuantizationConfig('int8', 'auto'), 'auto', 80, MemoryPlan(1, False, WEIGHTS)),
        (AUTOMATIC, 'device', 12, MemoryPlan(1, False, WEIGHTS)),
        (AUTOMATIC, 'host', 80, MemoryPlan(1, True)),
    ],
    ids=['weights full', 'weights int8', 'text on the device', 'text on the host'],
)
def test_what_is_asked_for_wins(accelerator, asked, text_encoder, card_gb, plan, capsys):
    accelerator(card_gb * USABLE)
    assert plan_memory(configs(text_encoder=text_encoder), 1, quantization=asked) == plan
    said = capsys.readouterr().err
    assert '--text-encoder' not in said or text_encoder == 'auto'
    assert '--weights' not in said or asked.weights == 'auto'


@pytest.mark.parametrize('card_gb', [16, 24, 80])
def test_fewer_images_at_once_come_before_a_text_encoder_on_the_host(accelerator, card_gb):
    accelerator(card_gb * USABLE)
    assert not plan_memory(configs(), 16, quantization=AUTOMATIC).offload_text


def test_without_leave_8_bits_are_advised_only(accelerator):
    accelerator(8 * USABLE)
    with pytest.raises(UserError, match='allow 8 bits .*--weights auto --cache auto'):
        plan_memory(configs(), 1)
    with pytest.raises(UserError, match="text_encoder is 'disk'; wanted auto, device, host"):
        plan_memory(configs(text_encoder='disk'), 1)


def test_nothing_is_chosen_on_a_cpu_or_a_mesh(monkeypatch, capsys):
    monkeypatch.setattr(memory_plan, 'free_bytes', lambda device: 24 * GB)
    assert plan_memory(configs(), 1, quantization=AUTOMATIC) == MemoryPlan(1, False)
    assert 'otherwise' not in capsys.readouterr().err
    monkeypatch.setattr(memory_plan, 'free_bytes', lambda device: 20 * GB)
    with pytest.raises(UserError, match='this machine has 20.0 GB free; generate a smaller'):
        plan_memory(configs(), 1, quantization=AUTOMATIC)
    monkeypatch.undo()
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    shared = types.SimpleNamespace(shape=mesh.shape, local_devices=[device(10)])
    assert plan_memory(configs(), 16, shared, AUTOMATIC) == MemoryPlan(8, False)
    with pytest.raises(UserError, match="'host', which is for one device"):
        plan_memory(configs(text_encoder='host'), 16, shared)


def test_former_settings_survive_a_choice(accelerator):
    accelerator(8 * USABLE)
    asked = QuantizationConfig('auto', 'auto', decoder='tf32', unguided_scales=1)
    chosen = plan_memory(configs(), 1, quantization=asked).quantization
    assert (chosen.weights, chosen.decoder, chosen.former_unguided_scales) == ('int8', 'tf32', 1)
