"""The tables of docs/memory.md on small cards: what is chosen, and the plans that were compiled."""

import math
import re
import types

import jax
import pytest
from helpers.paths import REPOSITORY

from infinity_jax.cli import build_parser
from infinity_jax.config import (
    PRESETS,
    ModelConfigs,
    QuantizationConfig,
    TextConfig,
    released_tokenizer,
)
from infinity_jax.errors import UserError
from infinity_jax.inference import memory_plan
from infinity_jax.inference.sampling import GenerationSettings
from infinity_jax.inference.warmup import BatchShape, calls_of
from infinity_jax.runtime.accelerators import GIB, PEAKS
from infinity_jax.runtime.host_memory import GPU_SHARE
from infinity_jax.scales import ScaleSchedule
from infinity_jax.tools.commands.generation_flags import quantization_of
from infinity_jax.tools.plan.gpu_topology import CARDS
from infinity_jax.tools.plan.topology import parse_topology

PAGE = (REPOSITORY / 'docs/memory.md').read_text()
# Bytes that CUDA reports of a card, the least of each size; `PEAKS` has no 16 GB with bfloat16.
REPORTED = {
    '8 GB': PEAKS['rtx4060'].hbm_bytes,
    '12 GB': PEAKS['rtx4070'].hbm_bytes,
    '16 GB': int(15.5 * GIB),
    '24 GB': PEAKS['l4'].hbm_bytes,
    '80 GB': PEAKS['h100'].hbm_bytes,
}
WORDS = {
    'as it is': (False, 'full', 'full'),
    'text encoder on the host': (True, 'full', 'full'),
    'text encoder on the host, weights in 8 bits': (True, 'int8', 'full'),
    'weights in 8 bits': (False, 'int8', 'full'),
    'text encoder on the host, weights and cache in 8 bits': (True, 'int8', 'int8'),
    'refused': None,
}


def rows(heading):
    """The rows of the first table under a heading, without its head."""
    section = PAGE.split(f'# {heading}\n', 1)[1]
    table = re.search(r'^\|.*?\n\n', section, re.DOTALL | re.MULTILINE)[0]
    lines = [line.strip('| ').split(' | ') for line in table.strip().splitlines()]
    return [[cell.strip('* |') for cell in line] for line in lines[2:]]


def configs_of(name):
    transformer = PRESETS[name]
    return ModelConfigs(
        transformer,
        released_tokenizer(transformer),
        TextConfig(),
        ScaleSchedule.for_image(1.0, '1M'),
        text_dtype='float16',
    )


@pytest.mark.parametrize('card', rows('Small cards'), ids=lambda row: row[0])
def test_what_is_chosen(card, monkeypatch):
    stats = {'bytes_limit': int(GPU_SHARE * REPORTED[card[0]])}
    gpu = types.SimpleNamespace(platform='gpu', memory_stats=lambda: stats)
    monkeypatch.setattr(memory_plan.jax, 'local_devices', lambda: [gpu])
    for name, words in zip(('2b', '8b'), card[1:], strict=True):
        try:
            plan = memory_plan.plan_memory(
                configs_of(name), 1, quantization=QuantizationConfig('auto', 'auto')
            )
            chosen = plan.offload_text, plan.quantization.weights, plan.quantization.cache
        except UserError:
            chosen = None
        assert chosen == WORDS[words], name


def test_a_card_is_planned_with_the_share_that_commands_let_jax_reserve():
    page = (REPOSITORY / 'docs/plan.md').read_text()
    for name in CARDS:
        usable = parse_topology(f'{name}:1').usable_bytes
        assert usable == int(GPU_SHARE * PEAKS[name].hbm_bytes)
        assert f' {usable / GIB:.2f}'.rstrip('0') in page, name


@pytest.mark.parametrize('plan', rows('Compiled for cards'), ids=lambda row: row[0])
def test_compiled_plans(plan):
    command, total, arguments, temporaries = plan
    args = build_parser().parse_args(command.strip('`').split()[1:])
    topology, quantization = parse_topology(args.topology), quantization_of(args)
    configs = configs_of(args.config.rpartition(':')[2].removesuffix('_1024'))
    settings = GenerationSettings(configs.schedule, int8_cache=quantization.cache == 'int8')
    shape = BatchShape(1, 1, configs.transformer.text_length)
    call = calls_of(configs, settings, shape, quantization, platform='gpu')[-1]
    sizes = (math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(call.shapes))
    assert sum(sizes) / GIB == pytest.approx(float(arguments), abs=0.01)
    needed, usable = (float(number) for number in total.split(' of '))
    assert needed == pytest.approx(float(arguments) + float(temporaries), abs=0.02)
    assert usable == pytest.approx(topology.usable_bytes / GIB, abs=0.005) and needed < usable
