"""On a card without bfloat16 a model in it generates in float32; who asks for it gets an error."""

import dataclasses
import types

import numpy as np
import pytest
from helpers.generation import small_model
from helpers.models import assert_same, changed
from helpers.paths import CONFIGS
from helpers.tiny import TRANSFORMER

from infinity_jax import sharding
from infinity_jax.cli import main
from infinity_jax.errors import UserError
from infinity_jax.inference.executables import Executables
from infinity_jax.inference.loading import load_for_generation, read_for_generation
from infinity_jax.inference.pipeline import InfinityPipeline
from infinity_jax.runtime.accelerators import lacks_bfloat16
from infinity_jax.scales import ScaleSchedule
from infinity_jax.serving.engine import Engine
from infinity_jax.sharding import MeshConfig, deviceless_mesh, lack_of_bfloat16, make_mesh
from infinity_jax.tools.commands.config_flags import read_config_file
from infinity_jax.tools.plan.topology import parse_topology
from infinity_jax.tools.plan.training import Planner
from infinity_jax.training.init_from import run_config
from infinity_jax.training.transformer.task import make_task
from infinity_jax.transformer import card_dtype
from infinity_jax.transformer.card_dtype import for_card
from infinity_jax.weights.model_folder import save_model
from infinity_jax.weights.placement import place_model

BFLOAT16 = dataclasses.replace(TRANSFORMER, dtype='bfloat16')
LACK = 'Tesla T4 has compute capability 7.5 and bfloat16 products need 8.0 (Ampere) or newer'
LINE = f"dtype: float32 instead of the model's bfloat16, since {LACK}\n"


@pytest.fixture(autouse=True)
def nothing_said():
    card_dtype._say.cache_clear()


@pytest.fixture
def t4(monkeypatch):
    monkeypatch.setattr(sharding, 'target_kind', lambda: 'Tesla T4')


@pytest.fixture
def folder(tmp_path):
    """A model in bfloat16 whose images take little time."""
    schedule = ScaleSchedule.free(((1, 1), (2, 1)))
    save_model(
        tmp_path / 'model',
        changed(small_model(), transformer_config=BFLOAT16, schedule=schedule),
    )
    return tmp_path / 'model'


def test_cards_before_ampere_lack_it():
    old = types.SimpleNamespace(device_kind='Tesla V100-SXM2-16GB', compute_capability='7.0')
    assert lacks_bfloat16('Tesla V100-SXM2-16GB', [old]).startswith('Tesla V100-SXM2-16GB has ')
    assert lacks_bfloat16('Tesla T4') == LACK
    for other in ('NVIDIA A100-SXM4-40GB', 'NVIDIA L4', 'TPU v5 lite', 'cpu', 'an unknown card'):
        assert lacks_bfloat16(other) == ''
    assert lack_of_bfloat16() == lack_of_bfloat16(make_mesh()) == ''
    mesh = types.SimpleNamespace(devices=np.array([[old]]))
    assert lack_of_bfloat16(mesh) == ''  # not of this machine, and not in the table
    mesh.devices[0, 0] = types.SimpleNamespace(device_kind='Tesla T4')
    assert lack_of_bfloat16(mesh) == LACK


def test_float32_is_chosen_and_one_line_says_so(capsys):
    for _ in range(2):
        assert for_card(BFLOAT16, LACK) == TRANSFORMER
    assert capsys.readouterr().err == LINE
    for config, lack in ((BFLOAT16, ''), (TRANSFORMER, LACK)):
        assert for_card(config, lack) == config
    half = dataclasses.replace(TRANSFORMER, dtype='float16')
    assert for_card(half, LACK) == half
    assert capsys.readouterr().err == ''


def test_a_model_in_bfloat16_is_loaded_as_in_float32(t4, folder, capsys):
    def load(**options):
        return load_for_generation(folder, read_for_generation(folder, **options), max_batch=1)

    asked = load(dtype='float32', text_dtype='float16').model
    assert capsys.readouterr().err == ''
    chosen = load().model
    assert capsys.readouterr().err == LINE
    assert chosen.configs == asked.configs and chosen.configs.text_products == 'float16'
    assert_same(chosen.transformer_params, asked.transformer_params)
    pipeline = InfinityPipeline(chosen)
    assert (pipeline.dtype, pipeline.text_dtype) == ('float32', 'float16')
    assert read_for_generation(folder).text_products == 'float16'
    assert read_for_generation(folder, dtype='float32').text_products == 'float32'


def test_other_ways_to_load_choose_the_same(t4, folder, capsys, monkeypatch):
    placed = place_model(changed(small_model(), transformer_config=BFLOAT16))
    assert placed.configs.transformer.dtype == 'float32'
    assert placed.configs.text_products == 'float16'  # as on other cards
    kernel = placed.transformer_params['blocks']['ffn']['up']['kernel']
    assert kernel.dtype == np.float32
    engine = Engine.load(folder, sizes=(2,))
    assert engine.configs.transformer.dtype == 'float32'
    with pytest.raises(UserError, match="dtype is 'bfloat16', but Tesla T4"):
        Engine.load(folder, sizes=(2,), dtype='bfloat16')
    assert capsys.readouterr().err == LINE
    stored = []
    monkeypatch.setattr(
        Executables, 'store', lambda self, function, static, shapes: stored.append(static) or folder
    )
    main(['compile', '--checkpoint', str(folder)])
    assert stored[-1]['networks'].transformer.config.dtype == 'float32'


@pytest.mark.parametrize(
    'command',
    [['generate', 'a cat', '--out', 'x.png'], ['compile']],
    ids=lambda command: command[0],
)
def test_bfloat16_by_name_is_refused_before_weights_are_read(
    command, t4, folder, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('infinity_jax.inference.loading.load_model', None)
    with pytest.raises(SystemExit):
        main([*command, '--checkpoint', str(folder), '--dtype', 'bfloat16'])
    message = capsys.readouterr().err
    assert message.count('\n') == 1
    assert f"dtype is 'bfloat16', but {LACK}: leave out --dtype, or set it to float32" in message


def test_training_and_its_plan_say_what_to_set():
    overrides = ['--config.transformer.dtype=bfloat16']
    config = run_config(read_config_file(str(CONFIGS / 't2i.py'), overrides))
    mesh = types.SimpleNamespace(devices=np.array([types.SimpleNamespace(device_kind='Tesla T4')]))
    wanted = (
        f"config field transformer.dtype is 'bfloat16', but {LACK}: set it to 'float32' "
        '(--config.transformer.dtype=float32)'
    )
    with pytest.raises(UserError) as training:
        make_task(config, mesh)
    with pytest.raises(UserError) as plan:
        Planner(config, None, parse_topology('t4:1'), deviceless_mesh(MeshConfig(), 1), 'images')
    assert str(training.value) == str(plan.value) == wanted


def test_measurements_name_their_precision(t4, capsys):
    with pytest.raises(SystemExit):
        main(['bench', 'generate', '--preset', 'demo'])
    assert f"precision is 'bfloat16', but {LACK}: set --precision" in capsys.readouterr().err
