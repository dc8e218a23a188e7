"""The paper's presets: they fit their tokenizers, trace at full size, and cost what they say."""

import dataclasses
import functools
import math
import re
import runpy

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from helpers.models import model_of
from helpers.paths import CONFIGS, REPOSITORY

from infinity_jax.config import PRESETS, TextConfig, pixels_per_token
from infinity_jax.data.batch import Batch
from infinity_jax.errors import UserError
from infinity_jax.parsing import from_mapping
from infinity_jax.runtime.accelerators import PEAKS
from infinity_jax.scales import BUDGET_OF_EDGE, ScaleSchedule
from infinity_jax.sharding import mesh_sizes
from infinity_jax.tokenizer.autoencoder import tokenizer_shapes
from infinity_jax.training import flops
from infinity_jax.training.optimizer import make_optimizer, new_state
from infinity_jax.training.tokenizer.config import TokenizerRunConfig
from infinity_jax.training.transformer.config import T2IConfig
from infinity_jax.training.transformer.parts import load_parts
from infinity_jax.training.transformer.step import make_models, train_step
from infinity_jax.weights.t5_folder import encoder_shapes

T2I = runpy.run_path(str(CONFIGS / 't2i.py'))
TOKENIZERS = runpy.run_path(str(CONFIGS / 'tokenizer.py'))
NAMED = (
    '125m_256', '361m_256', '940m_256', '2b_256', '2b_512', '2b_1024', '4.7b_1024', '8b_512',
    '8b_1024', '20b_1024',
)  # fmt: skip
# Each budget and each stride, heads of 112 and of 128 channels; a trace is the same at any depth.
TRACED = (
    ('361m_256', '1.000'), ('2b_512', '1.750'), ('4.7b_1024', '1.000'), ('8b_512', '1.000'),
    ('20b_1024', '0.500'),
)  # fmt: skip
ASSUMED_MFU = 0.4


def preset(name):
    return from_mapping(T2IConfig, T2I['get_config'](name))


def tokenizer_of(config):
    file = TOKENIZERS['get_config'](f'd{config.transformer.bits}_stage2')
    return from_mapping(TokenizerRunConfig, file).tokenizer


def square(config):
    return ScaleSchedule.for_image(1.0, BUDGET_OF_EDGE[config.data.image_size])


def test_the_config_file_has_the_presets_of_the_package():
    assert tuple(T2I['SIZES']) == tuple(PRESETS) == tuple(T2I['CHIPS'])


def test_the_readme_lists_the_presets():
    rows = re.findall(
        r'^\| ([\d.]+[mb])\b[^|]* \| (\d+) \| (\d+) \| (\d+) \| [\d.]+ B '
        r'\| d=(\d+), stride (\d+)(.*) \|$',
        (REPOSITORY / 'README.md').read_text(),
        re.MULTILINE,
    )
    wanted = {
        name: (str(c.depth), str(c.width), str(c.num_heads), str(c.bits), str(16 // c.patch_size))
        for name, c in PRESETS.items()
    }
    assert {name: tuple(sizes) for name, *sizes, _ in rows} == wanted
    for name, *_, patchify in rows:
        assert ('patchify' in patchify) == PRESETS[name].spatial_patchify


@pytest.mark.parametrize('edge', ['256', '1024'])
def test_the_old_name_of_a_size_still_works(capsys, edge):
    old, new = (T2I['get_config'](f'{size}_{edge}') for size in ('5b', '4.7b'))
    assert f'variant 5b_{edge} is now 4.7b_{edge}' in capsys.readouterr().err
    assert old.run_dir == f'runs/t2i_5b_{edge}'  # a run that was started under the old name
    old.run_dir = new.run_dir
    assert old.to_dict() == new.to_dict()


@pytest.mark.parametrize('name', [v for v in T2I['VARIANTS'] if '_' in v])
def test_a_preset_is_the_papers(name):
    config, (size, edge) = preset(name), name.split('_')
    assert config.transformer == PRESETS[size]
    assert config.data.image_size == int(edge) and len(config.data.bucket_names) == 15
    recipe = config.steps, config.batch_size, config.optimizer.learning_rate
    wanted = {
        '256': (150_000, 4096, 6e-5),
        '512': (110_000, 4096, 6e-5),
        '1024': (60_000, 2048, 2e-5),
    }
    assert recipe == wanted[edge]
    optimizer = config.optimizer
    assert (optimizer.beta1, optimizer.beta2, optimizer.clip_norm) == (0.9, 0.97, 5.0)
    assert (optimizer.weight_decay, optimizer.decay, optimizer.warmup_steps) == (
        0.005,
        'constant',
        0,
    )
    assert config.condition_drop == 0.1 and config.self_correction.max_strength == 0.3
    loaded = model_of(
        transformer_config=config.transformer,
        tokenizer_config=tokenizer_of(config),
        text_config=TextConfig(),
    )
    assert loaded.configs.problems() == []
    stride = pixels_per_token(config.transformer, loaded.configs.tokenizer)
    assert square(config).image_size(stride) == (int(edge), int(edge))


def traced(config, ratio):
    """Shapes that one training step at full size gives, for a bucket."""
    tokenizer = tokenizer_of(config)
    loaded = model_of(
        transformer_config=config.transformer,
        tokenizer_config=tokenizer,
        text_config=TextConfig(),
        schedule=square(config),
    )
    models = make_models(config, loaded.configs)
    optimizer = make_optimizer(config.optimizer, config.steps)
    start = lambda key: new_state(models.init(key, False), optimizer)
    state = nn.unbox(jax.eval_shape(start, jax.random.key(0)))
    frozen = {'tokenizer': tokenizer_shapes(tokenizer), 'text': encoder_shapes(TextConfig())}
    schedule = ScaleSchedule.for_image(ratio, BUDGET_OF_EDGE[config.data.image_size])
    rows = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.int32)
    batch = Batch(
        pixels_BYX3=rows((config.batch_size, *schedule.image_size(), 3), dtype=jnp.uint8),
        ids_BT=rows((config.batch_size, 512)),
        lengths_B=rows((config.batch_size,)),
    )
    step = functools.partial(train_step, models=models, config=config)
    return state, jax.eval_shape(step, state, frozen, batch), len(schedule)


@pytest.mark.parametrize(('name', 'ratio'), TRACED)
def test_the_whole_step_traces_at_full_size(name, ratio):
    before, (after, metrics), scales = traced(preset(name), ratio)
    same = lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype)
    assert jax.tree.all(jax.tree.map(same, before, after))
    assert metrics['loss'].shape == () and metrics['loss_per_scale'].shape == (scales,)


ROW = re.compile(
    r'^ +([\w.]+_\d+) +([\d,]+) x (\d+) +([\d.]+) +(v5[ep]) ([\dx]+) +([\d,]+) +([\d.]+)$'
)


def test_the_table_of_costs_is_what_the_arithmetic_gives():
    rows = [match.groups() for line in T2I['__doc__'].splitlines() if (match := ROW.match(line))]
    assert tuple(row[0] for row in rows) == NAMED
    for name, steps, batch, tera, kind, topology, chip_hours, days in rows:
        config, chips = preset(name), math.prod(map(int, topology.split('x')))
        cost = flops.training_step(config.transformer, square(config), 1, 512).total
        assert (int(steps.replace(',', '')), int(batch)) == (config.steps, config.batch_size)
        assert float(tera) == round(cost / 1e12, 2)
        hours = cost * config.steps * config.batch_size / PEAKS[kind].bf16_flops / 3600
        assert int(chip_hours.replace(',', '')) == round(hours / ASSUMED_MFU)
        assert float(days) == round(hours / ASSUMED_MFU / 24 / chips, 1)
        assert chips == T2I['CHIPS'][name.split('_')[0]]
        assert config.remat == ('queries' if name in ('2b_256', '2b_1024', '8b_1024') else 'full')
        part, rest = divmod(config.batch_size, config.accumulate_steps)
        assert rest == 0 and part % chips == 0


@pytest.mark.parametrize('name', NAMED)
def test_a_chip_keeps_whole_registers_of_every_matrix(name):
    config, chips = preset(name), T2I['CHIPS'][name.split('_')[0]]
    axes = mesh_sizes(config.mesh, chips)
    assert config.transformer.width % (16 * axes['fsdp']) == 0
    assert chips == axes['data'] * axes['fsdp']


def test_frozen_networks_cost_what_the_table_says():
    said = re.search(r'add ([\d.]+) TFLOP.* ([\d.]+) at 512² and ([\d.]+) at', T2I['__doc__'])
    for edge, tera in zip(('256', '512', '1024'), said.groups(), strict=True):
        config = preset(f'2b_{edge}')
        parts = config.transformer, tokenizer_of(config), TextConfig(), square(config)
        assert float(tera) == round(flops.frozen_forward(*parts, 1, 512).total / 1e12, 1)


def test_what_a_preset_wants_named():
    config = preset('2b_256')
    with pytest.raises(UserError, match='tokenizer of 32 bits.*; config.text.folder is empty: nam'):
        load_parts(config)
    with pytest.raises(UserError, match='^config.text.folder is empty.* width 2048'):
        load_parts(dataclasses.replace(config, tokenizer='somewhere'))
