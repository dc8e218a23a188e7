"""The plan of a tokenizer's training: it lowers the step that training jits, and counts work."""

import dataclasses

import jax
import numpy as np
import pytest
import safetensors.numpy
from helpers.lpips_weights import vgg_tensors

from infinity_jax.config import TokenizerConfig
from infinity_jax.data.config import DataConfig
from infinity_jax.sharding import MeshConfig, make_mesh
from infinity_jax.tokenizer.autoencoder import tokenizer_shapes
from infinity_jax.tools.plan import tokenizer
from infinity_jax.tools.plan.topology import parse_topology
from infinity_jax.training import flops
from infinity_jax.training.batches import put_batch
from infinity_jax.training.optimizer import OptimizerConfig
from infinity_jax.training.tokenizer import lpips, lpips_files
from infinity_jax.training.tokenizer import task as train_tokenizer
from infinity_jax.training.tokenizer.config import (
    AdversarialConfig,
    TokenizerLosses,
    TokenizerRunConfig,
)

CONFIG = TokenizerRunConfig(
    task='tokenizer',
    run_dir='nowhere',
    steps=4,
    batch_size=8,
    eval_batches=1,
    optimizer=OptimizerConfig(learning_rate=1e-2),
    data=DataConfig(image_size=16),
    grids=((1, 1), (4, 4)),
    tokenizer=TokenizerConfig(
        bits=4, base_channels=4, channel_multipliers=(1,), residual_blocks=1, unshuffle=4,
        norm_groups=2,
    ),
)  # fmt: skip


@pytest.fixture
def narrow_vgg(tmp_path, monkeypatch):
    """Fields that name files of a VGG-16 with four channels."""
    blocks = tuple((4,) * len(widths) for widths in lpips.BLOCKS)
    for module in (lpips, lpips_files, tokenizer):
        monkeypatch.setattr(module, 'BLOCKS', blocks)
    heads = {lpips_files.HEAD_NAME.format(i): np.ones((1, 4, 1, 1), np.float32) for i in range(5)}
    safetensors.numpy.save_file(vgg_tensors.__wrapped__(), tmp_path / 'vgg.safetensors')
    safetensors.numpy.save_file(heads, tmp_path / 'heads.safetensors')
    return {
        'vgg_weights': str(tmp_path / 'vgg.safetensors'),
        'lpips_heads': str(tmp_path / 'heads.safetensors'),
    }


def test_the_step_of_the_plan_is_the_step_of_training(narrow_vgg, monkeypatch):
    """The same program text, of parameters and state split alike, with every network in it."""
    config = dataclasses.replace(
        CONFIG,
        losses=TokenizerLosses(perceptual=1.0),
        adversarial=AdversarialConfig(weight=0.3, adaptive=True, channels=8, layers=1),
        accumulate_steps=2,
        **narrow_vgg,
    )
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2), jax.devices())
    planned = tokenizer.abstract_tokenizer_step(config, mesh)
    jit_step = train_tokenizer.jit_step

    def lowered_instead(*args):
        step = jit_step(*args)
        return lambda *arguments: step.lower(*arguments).as_text()

    monkeypatch.setattr(train_tokenizer, 'jit_step', lowered_instead)
    task = train_tokenizer.make_task(config, mesh)
    batch = put_batch(next(task.batches), mesh)
    task.batches.close()
    assert planned.lower(*planned.arguments).as_text() == task.train_step(
        task.abstract_state, batch
    )


@pytest.mark.parametrize('frozen', [False, True])
def test_a_frozen_encoder_is_not_counted_as_trained(monkeypatch, frozen):
    monkeypatch.setattr(tokenizer, 'can_compile', lambda topology: False)
    config = dataclasses.replace(CONFIG, freeze_encoder=frozen, init_from='somewhere')
    mesh = make_mesh(devices=jax.devices()[:1])
    plan = tokenizer.plan_tokenizer(config, parse_topology('v5e:1x1'), mesh, print)
    shapes = tokenizer_shapes(config.tokenizer)
    encoder, decoder = (
        sum(leaf.size for leaf in jax.tree.leaves(shapes[part])) for part in ('encoder', 'decoder')
    )
    encode = flops.tokenizer_encode(config.tokenizer, 16, 16, 8).total
    decode = flops.tokenizer_decode(config.tokenizer, 16, 16, 8).total
    assert plan.cost is None and plan.analysis.images == 8
    found = plan.analysis.parameters, plan.analysis.model_flops, plan.analysis.frozen_flops
    if frozen:
        assert found == (decoder, 3 * decode, encode)
    else:
        assert found == (encoder + decoder, 3 * (encode + decode), 0)
    # Parameters, average and two moments; three counters and the optimizer's two.
    assert plan.analysis.state_bytes == 4 * (4 * (encoder + decoder) + 5)
