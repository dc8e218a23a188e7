"""Fine-tuning: dimensions and first loss are the folder's; adapters merge into the folder."""

import dataclasses

import jax
import numpy as np
import pytest
import safetensors
from helpers.finetuning import FINETUNE, TOKENIZER, TRANSFORMER, fields, save
from helpers.models import model_of
from helpers.paths import VOCABULARY
from helpers.stride4 import GRIDS
from helpers.tiny import tokenizer_variables

from infinity_jax.convert.exporting import to_torch_files
from infinity_jax.errors import UserError
from infinity_jax.inference.pipeline import InfinityPipeline
from infinity_jax.scales import ScaleSchedule
from infinity_jax.sharding import make_mesh
from infinity_jax.tools.evaluation.loss import evaluate_loss
from infinity_jax.tools.plan.abstract_step import abstract_step, configured_parts
from infinity_jax.training import loop
from infinity_jax.training.init_from import run_config, transformer_params
from infinity_jax.training.metrics import read_metrics
from infinity_jax.training.transformer.parts import load_parts, place_frozen
from infinity_jax.training.transformer.task import make_task
from infinity_jax.transformer.lora import LoraConfig, merge, updates_of
from infinity_jax.weights.adapter_file import FILE_NAME, load_adapter, merge_into_folder
from infinity_jax.weights.model_folder import load_model, save_model
from infinity_jax.weights.placement import place_model

CAPTIONS = ['a red apple on a blue background', 'a green leaf']


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    schedule = ScaleSchedule.free(GRIDS)
    return save(tmp_path_factory.mktemp('models') / 'base', schedule=schedule)


def test_the_folder_gives_the_missing_fields(folder, tmp_path):
    config = run_config(fields(folder, tmp_path))
    assert config.transformer == dataclasses.replace(TRANSFORMER, drop_path=0.0)
    assert config.tokenizer == str(folder) and config.text.folder == str(folder / 'text_encoder')
    changed = fields(folder, tmp_path)
    changed.transformer.dtype, changed.text.folder = 'bfloat16', str(VOCABULARY)
    config = run_config(changed)
    assert config.transformer.dtype == 'bfloat16' and config.transformer.depth == 2
    assert config.text.folder == str(VOCABULARY)
    assert config.transformer.text_channels == 128  # of that encoder


def test_a_folder_must_be_named(folder, tmp_path):
    with pytest.raises(UserError, match='config.init_from is empty: name the model folder'):
        run_config(FINETUNE['get_config']())
    save_model(tmp_path / 'tokenizer', model_of(tokenizer_config=TOKENIZER,
               tokenizer_params=tokenizer_variables(TOKENIZER)['params']))  # fmt: skip
    with pytest.raises(UserError, match='holds no transformer'):
        run_config(fields(tmp_path / 'tokenizer', tmp_path))
    config = run_config(fields(folder, tmp_path))
    lora = LoraConfig(rank=1)
    mesh = make_mesh(devices=jax.devices()[:1])
    with pytest.raises(UserError, match='lora.rank is 1 and config.init_from empty'):
        make_task(dataclasses.replace(config, lora=lora, init_from=''), mesh)
    with pytest.raises(UserError, match='set text.train to False'):
        dataclasses.replace(config, lora=lora, text=dataclasses.replace(config.text, train=True))


def pixels(images):
    return np.stack([np.asarray(image) for image in images.images])


def test_adapters_start_at_the_folders_loss_and_merge_into_the_same_images(folder, tmp_path):
    config = fields(folder, tmp_path, 'lora')
    config.lora.rank, config.optimizer.warmup_steps = 1, 1
    config.optimizer.learning_rate = 0.1
    config = run_config(config)
    mesh = make_mesh(devices=jax.devices()[:1])
    task = dataclasses.replace(make_task(config, mesh), sample=lambda *_: None)
    assert set(task.abstract_state.params) == {'lora'}
    finished = loop.run(config, task, mesh)

    before, after = read_metrics(config.run_dir, 'heldout')
    assert (before['step'], after['step']) == (0, 2) and after['loss'] != before['loss']
    alone = evaluate_loss(folder, config, num_batches=1)
    assert before['loss'] == pytest.approx(float(alone['loss']), rel=1e-6)

    adapter = tmp_path / 'run' / FILE_NAME
    lora, adapters = load_adapter(adapter)
    base = load_model(folder)
    merged = merge(base.transformer_params, updates_of(adapters, lora))
    with_adapters = place_model(dataclasses.replace(base, transformer_params=merged))
    generated = pixels(InfinityPipeline(with_adapters)(CAPTIONS))
    merge_into_folder(folder, [adapter], tmp_path / 'merged')
    for same in (tmp_path / 'merged', finished):
        pipeline = InfinityPipeline(place_model(load_model(same)))
        np.testing.assert_array_equal(pixels(pipeline(CAPTIONS)), generated)
    assert (pixels(InfinityPipeline(place_model(base))(CAPTIONS)) != generated).any()
    with safetensors.safe_open(adapter, 'numpy') as file:
        assert len(file.keys()) == 14
    with pytest.raises(UserError, match='its checkpoints hold LoRA adapters alone'):
        to_torch_files(config.run_dir, tmp_path / 'torch')


@pytest.mark.parametrize('variant', ['full', 'lora', 'bfloat16', 'int8'])
def test_a_plan_has_the_frozen_parts_of_the_run(folder, tmp_path, variant):
    config = fields(folder, tmp_path, 'full' if variant == 'full' else 'lora')
    if variant in ('bfloat16', 'int8'):
        config.lora.base_dtype = variant
    config = run_config(config)
    mesh = make_mesh(config.mesh)
    placed = place_frozen(config, load_parts(config, mesh), mesh)
    if variant != 'full':
        kernel = placed['transformer']['blocks']['ffn']['up']['kernel']
        assert kernel.dtype == ('float32' if variant == 'lora' else variant)
    planned = abstract_step(config, configured_parts(config), mesh).arguments[1]
    assert ('transformer' in placed) == (variant != 'full')

    def compare(ours, wanted):
        assert (ours.shape, ours.dtype) == (wanted.shape, wanted.dtype)
        assert ours.sharding.is_equivalent_to(wanted.sharding, wanted.ndim)

    jax.tree.map(compare, planned, placed)


def test_all_weights_start_at_the_folders(folder, tmp_path):
    config = run_config(fields(folder, tmp_path))
    state = make_task(config, make_mesh(devices=jax.devices()[:1])).from_model()
    given = load_model(folder).transformer_params
    for tree in (state.params, state.ema):
        jax.tree.map(np.testing.assert_array_equal, tree['transformer'], given)
        assert set(tree) == {'transformer'}


@pytest.mark.parametrize('patchify', [False, True])
def test_the_stages_of_the_recipe_hand_on_their_weights(tmp_path, patchify):
    levels = (1, 1, 1, 1) if patchify else (1, 1, 1, 1, 1)
    tokenizer = dataclasses.replace(TOKENIZER, channel_multipliers=levels, unshuffle=1)
    transformer = dataclasses.replace(TRANSFORMER, max_scales=15, spatial_patchify=patchify)
    small, large = (ScaleSchedule.for_image(1.0, budget) for budget in ('0.06M', '0.25M'))
    folder = save(tmp_path / 'stage_256', transformer, tokenizer, small)
    config = fields(folder, tmp_path)
    config.data.image_size, config.data.ratios = 512, ('all',)
    config = run_config(config)
    assert load_parts(config).configs.schedule == large
    given = load_model(folder).transformer_params
    mesh = make_mesh(devices=jax.devices()[:1])
    started = transformer_params(config, {'transformer': given}, mesh, None)['transformer']
    jax.tree.map(np.testing.assert_array_equal, started, given)
    # A scale's tokens keep their positions, and its row of the level table, at the next budget.
    tokens = small.num_tokens
    np.testing.assert_array_equal(large.rope_positions()[:tokens], small.rope_positions())
    np.testing.assert_array_equal(large.scale_of_token[:tokens], small.scale_of_token)


def test_a_folded_models_own_grids_are_kept(tmp_path):
    schedule = ScaleSchedule.free(((1, 1), (2, 2)))
    transformer = dataclasses.replace(TRANSFORMER, spatial_patchify=True)
    folder = save(tmp_path / 'folded', transformer, schedule=schedule)
    config = run_config(fields(folder, tmp_path))
    assert (
        load_parts(config).configs.schedule == schedule
    )  # 2x2 tokens of 2x2 codes of 4 pixels: 16
