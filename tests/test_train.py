"""The text-to-image trainer on a toy: resume, bad steps, several devices, what it leaves behind."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from infinity_jax import loop, train
from infinity_jax.config import TextConfig, TokenizerConfig, TransformerConfig, UserError
from infinity_jax.metrics import read_metrics
from infinity_jax.model_folder import ModelBundle, load_model, save_model
from infinity_jax.optimizer import OptimizerConfig
from infinity_jax.scales import ScaleSchedule
from infinity_jax.sharding import MeshConfig, make_mesh
from infinity_jax.tokenizer.autoencoder import Autoencoder
from infinity_jax.train import make_task
from infinity_jax.train_parts import T2IConfig, TextTraining, load_parts

GRIDS = ((1, 1), (2, 2), (4, 4))
TOKENIZER = TokenizerConfig(
    bits=8, base_channels=8, channel_multipliers=(1,), residual_blocks=1, unshuffle=4, norm_groups=4
)  # fmt: skip
TEXT = TextConfig(vocab_size=1500, width=16, num_layers=1, num_heads=2, head_dim=8, ffn_width=32)


@pytest.fixture(scope='module')
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('parts') / 'tokenizer'
    params = Autoencoder(TOKENIZER).init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))['params']
    bundle = ModelBundle(
        tokenizer_config=TOKENIZER,
        tokenizer_params=nn.unbox(params),
        schedule=ScaleSchedule.free(GRIDS),
    )
    save_model(folder, bundle)
    return folder


@pytest.fixture
def config(tokenizer_folder, tmp_path):
    return T2IConfig(
        task='t2i',
        run_dir=str(tmp_path / 'run'),
        tokenizer=str(tokenizer_folder),
        steps=6,
        batch_size=8,
        log_every=1,
        eval_every=3,
        eval_batches=1,
        sample_every=100,
        checkpoint_every=2,
        optimizer=OptimizerConfig(learning_rate=1e-2, ema_decay=0.9),
        data=loop.DataConfig(picture_size=16),
        transformer=TransformerConfig(
            depth=2, width=32, num_heads=2, bits=8, text_channels=16, text_length=16, levels=3,
            dtype='float32',
        ),
        text=TextTraining(encoder=TEXT, train=True),
    )  # fmt: skip


def run(config, mesh=None, stop_before=None):
    """Trains on one device; with `stop_before`, as if killed on the way into that step."""
    mesh = mesh or make_mesh(devices=jax.devices()[:1])
    task = make_task(config, mesh)
    inner = task.train_step

    def train_step(state, batch):
        if stop_before is not None and int(state.step) + 1 == stop_before:
            raise KeyboardInterrupt
        return inner(state, batch)

    task = dataclasses.replace(task, train_step=train_step, sample=lambda *_: None)
    return loop.run(config, task, mesh)


def losses(config):
    return {record['step']: record['loss'] for record in read_metrics(config.run_dir)}


def test_resuming_continues_bit_for_bit_and_exports(config, tmp_path):
    folder = run(config)
    whole = losses(config)
    assert sorted(whole) == list(range(1, 7))
    cut = dataclasses.replace(config, run_dir=str(tmp_path / 'cut'))
    with pytest.raises(KeyboardInterrupt):
        run(cut, stop_before=6)  # the last checkpoint is of step 4, step 5 was logged
    again = run(cut)
    assert losses(cut) == whole
    ours, theirs = load_model(folder), load_model(again)
    jax.tree.map(np.testing.assert_array_equal, ours.transformer_params, theirs.transformer_params)
    jax.tree.map(np.testing.assert_array_equal, ours.text_params, theirs.text_params)
    assert ours.schedule == ScaleSchedule.free(GRIDS) and ours.extra['run']['steps'] == 6
    assert run(cut) == again  # a finished run only exports again
    # It is also a place to start from.
    start = dataclasses.replace(config, run_dir=str(tmp_path / 'more'), init_from=str(folder))
    state = make_task(start, make_mesh(devices=jax.devices()[:1])).from_model()
    jax.tree.map(
        np.testing.assert_array_equal, state.params['transformer'], ours.transformer_params
    )
    wrong = dataclasses.replace(start, transformer=dataclasses.replace(config.transformer, depth=3))
    with pytest.raises(UserError, match='init_from.*but the config wants'):
        make_task(wrong, make_mesh(devices=jax.devices()[:1])).from_model()


def test_eight_devices_equal_one(config):
    results = []
    one, eight = jax.devices()[:1], jax.devices()
    for mesh in (make_mesh(devices=one), make_mesh(MeshConfig(2, 2, 2), eight)):
        task = make_task(config, mesh)
        state, values = task.init(jax.random.key(0)), []
        for _ in range(2):
            state, metrics = task.train_step(state, loop.put_batch(next(task.batches), mesh))
            values.append([float(metrics['loss']), float(metrics['grad_norm'])])
        results.append(values)
    np.testing.assert_allclose(results[0], results[1], rtol=1e-5)


def test_samples_are_drawn_where_the_parameters_lie(config, tmp_path, monkeypatch):
    mesh = make_mesh(MeshConfig(2, 2, 2))
    task = make_task(config, mesh)
    state = task.init(jax.random.key(0))

    def refuse(*_):
        raise AssertionError('parameters were copied to the host')

    monkeypatch.setattr(train, 'to_host', refuse)
    task.sample(state, tmp_path / 'sample.png')
    assert Image.open(tmp_path / 'sample.png').width > 16
    task.train_step(state, loop.put_batch(next(task.batches), mesh))  # its arrays still live


def test_a_bad_batch_is_skipped_and_many_stop_the_run(config):
    mesh = make_mesh(devices=jax.devices()[:1])
    task = make_task(config, mesh)

    class Spoilt:
        """Batches with captions of no tokens at the given steps: attention to nothing is NaN."""

        def __init__(self, batches, steps):
            self.batches, self.steps, self.step = batches, steps, 0

        def __next__(self):
            self.step += 1
            batch = next(self.batches)
            if self.step in self.steps:
                batch['lengths_B'] = np.zeros_like(batch['lengths_B'])
            return batch

        def close(self):
            self.batches.close()

    config = dataclasses.replace(config, checkpoint_every=100, eval_every=100, max_bad_steps=3)
    broken = dataclasses.replace(task, batches=Spoilt(task.batches, {2, 4, 5, 6}))
    with pytest.raises(UserError, match='step 6: 3 steps in a row.*learning_rate'):
        loop.run(config, broken, mesh)
    skipped = {record['step']: record['skipped'] for record in read_metrics(config.run_dir)}
    assert skipped == {1: 0, 2: 1, 3: 1, 4: 2, 5: 3}


def test_parts_that_do_not_fit_are_refused(config):
    wider = dataclasses.replace(config.transformer, bits=16)
    with pytest.raises(UserError, match='codes of 16 bits, the tokenizer has 8'):
        load_parts(dataclasses.replace(config, transformer=wider))
    larger = dataclasses.replace(config, data=loop.DataConfig(picture_size=32))
    with pytest.raises(UserError, match='data.picture_size is 32'):
        load_parts(larger)
    small = dataclasses.replace(TEXT, vocab_size=10)
    with pytest.raises(UserError, match='vocab_size is 10'):
        load_parts(dataclasses.replace(config, text=TextTraining(encoder=small, train=True)))
    with pytest.raises(UserError, match='no config.json'):
        load_parts(dataclasses.replace(config, tokenizer='/nowhere'))


def test_the_run_folder_tells_what_was_run(config):
    run(dataclasses.replace(config, steps=1))
    described = json.loads((loop.pathlib.Path(config.run_dir) / 'config.json').read_text())
    assert described['transformer']['width'] == 32
    assert (loop.pathlib.Path(config.run_dir) / 'losses.png').exists()
    (held_out,) = read_metrics(config.run_dir, 'heldout')
    assert len(held_out['accuracy_per_scale']) == len(held_out['majority_rate_per_scale']) == 3
