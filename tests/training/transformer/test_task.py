"""The text-to-image trainer on a toy: resume, bad steps, several devices, files."""

import dataclasses
import json
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.data_folders import (
    arrow_folder,
    imagefolder_folder,
    jsonl_folder,
    parquet_folder,
    sidecar_folder,
    tar_folder,
    tfds_folder,
)
from helpers.models import model_of
from helpers.stride4 import EIGHT_BITS as TOKENIZER
from helpers.stride4 import GRIDS
from helpers.tiny_run import FIELDS
from PIL import Image

from infinity_jax.config import TextConfig, TransformerConfig
from infinity_jax.convert.exporting import to_torch_files
from infinity_jax.convert.names import Naming
from infinity_jax.convert.plan import to_torch
from infinity_jax.convert.state_dict import open_transformer
from infinity_jax.data.batch import Batch
from infinity_jax.data.config import DataConfig, SourceConfig
from infinity_jax.errors import UserError
from infinity_jax.scales import ScaleSchedule
from infinity_jax.sharding import MeshConfig, make_mesh
from infinity_jax.tokenizer.autoencoder import Autoencoder
from infinity_jax.tools.evaluation.loss import evaluate_loss
from infinity_jax.training import flops, loop
from infinity_jax.training.batches import put_batch
from infinity_jax.training.metrics import read_metrics
from infinity_jax.training.transformer import step as train_step
from infinity_jax.training.transformer import task as train
from infinity_jax.training.transformer.config import T2IConfig, TextTraining
from infinity_jax.training.transformer.parts import load_parts
from infinity_jax.training.transformer.step import make_models
from infinity_jax.training.transformer.task import make_task
from infinity_jax.weights.model_folder import load_model, save_model

TEXT = TextConfig(vocab_size=1500, width=16, num_layers=1, num_heads=2, head_dim=8, ffn_width=32)


@pytest.fixture(scope='module')
def tokenizer_folder(tmp_path_factory):
    return save_tokenizer(tmp_path_factory.mktemp('parts') / 'tokenizer', TOKENIZER, GRIDS)


@pytest.fixture
def config(tokenizer_folder, tmp_path):
    return T2IConfig(
        task='t2i',
        run_dir=str(tmp_path / 'run'),
        tokenizer=tokenizer_folder,
        steps=6,
        batch_size=8,
        eval_every=3,
        sample_every=100,
        checkpoint_every=2,
        transformer=TransformerConfig(
            depth=2, width=32, num_heads=2, bits=8, text_channels=16, text_length=16, max_scales=3,
            dtype='float32',
        ),
        text=TextTraining(encoder=TEXT, train=True),
        **FIELDS,
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
    assert ours.configs.schedule == ScaleSchedule.free(GRIDS)
    assert ours.configs.extra['run']['steps'] == 6
    assert run(cut) == again  # a finished run only exports again
    # Its checkpoints become PyTorch files; the model folder holds the average.
    for ema in (True, False):
        out = tmp_path / f'torch_{ema}'
        to_torch_files(config.run_dir, out, ema=ema)
        written = open_transformer(out / 'transformer.pth')
        same = [
            np.array_equal(written[name].read(), array)
            for name, array in to_torch(
                config.transformer, ours.transformer_params, Naming(chunks=2)
            ).items()
        ]
        assert len(same) == len(written) and all(same) == ema
        assert (out / 'tokenizer.pth').is_file() and (
            out / 'text_encoder' / 'config.json'
        ).is_file()
    # It is also a place to start from.
    start = dataclasses.replace(config, run_dir=str(tmp_path / 'more'), init_from=str(folder))
    state = make_task(start, make_mesh(devices=jax.devices()[:1])).from_model()
    jax.tree.map(
        np.testing.assert_array_equal, state.params['transformer'], ours.transformer_params
    )
    # So is a run that never finished: its newest checkpoint, or the named one.
    for name in ('run', 'cut/checkpoints/6'):
        from_run = dataclasses.replace(start, init_from=str(tmp_path / name))
        params = make_task(from_run, make_mesh()).from_model().params
        jax.tree.map(np.testing.assert_array_equal, params['transformer'], ours.transformer_params)
        jax.tree.map(np.testing.assert_array_equal, params['text'], ours.text_params)
    wider = dataclasses.replace(config.transformer, width=2 * config.transformer.width)
    wrong = dataclasses.replace(start, transformer=wider)
    with pytest.raises(UserError, match='init_from.*but the config wants'):
        make_task(wrong, make_mesh(devices=jax.devices()[:1])).from_model()


def test_eight_devices_equal_one(config):
    results = []
    one, eight = jax.devices()[:1], jax.devices()
    for mesh in (make_mesh(devices=one), make_mesh(MeshConfig(2, 2, 2), eight)):
        task = make_task(config, mesh)
        state, values = task.init(jax.random.key(0)), []
        for _ in range(2):
            state, metrics = task.train_step(state, put_batch(next(task.batches), mesh))
            values.append([float(metrics['loss']), float(metrics['grad_norm'])])
        results.append(values)
    np.testing.assert_allclose(results[0], results[1], rtol=1e-5)


def test_samples_are_generated_where_the_parameters_are(config, tmp_path, monkeypatch):
    mesh = make_mesh(MeshConfig(2, 2, 2))
    task = make_task(config, mesh)
    state = task.init(jax.random.key(0))

    def refuse(*_):
        raise AssertionError('parameters were copied to the host')

    monkeypatch.setattr(train, 'to_host', refuse)
    task.sample(state, tmp_path / 'sample.png')
    assert Image.open(tmp_path / 'sample.png').width > 16
    task.train_step(state, put_batch(next(task.batches), mesh))  # its arrays still live


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
                batch = batch._replace(lengths_B=np.zeros_like(batch.lengths_B))
            return batch

        def move_to(self, number):
            self.batches.move_to(number)

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
    larger = dataclasses.replace(config, data=DataConfig(image_size=32))
    with pytest.raises(UserError, match='data.image_size is 32'):
        load_parts(larger)
    small = dataclasses.replace(TEXT, vocab_size=10)
    with pytest.raises(UserError, match='vocab_size is 10'):
        load_parts(dataclasses.replace(config, text=TextTraining(encoder=small, train=True)))
    with pytest.raises(UserError, match='/nowhere: no such folder'):
        load_parts(dataclasses.replace(config, tokenizer='/nowhere'))


def test_the_run_folder_describes_the_run(config):
    folder = run(dataclasses.replace(config, steps=1))
    described = json.loads((pathlib.Path(config.run_dir) / 'config.json').read_text())
    assert described['transformer']['width'] == 32
    assert (pathlib.Path(config.run_dir) / 'losses.png').exists()
    (held_out,) = read_metrics(config.run_dir, 'heldout')
    assert len(held_out['accuracy_per_scale']) == len(held_out['majority_rate_per_scale']) == 3
    (line,) = read_metrics(config.run_dir)
    step = flops.training_step(
        config.transformer, ScaleSchedule.free(GRIDS), 8, 16, trained_text=TEXT
    )
    logged = line['model_tflops_per_second'] * 1e12 * line['step_seconds']
    assert logged == pytest.approx(step.total) and step.text_encoder > 0
    assert line['pictures_per_second'] * line['step_seconds'] == pytest.approx(8)
    assert 'mfu' not in line  # a CPU has no published peak
    # The finished model has that very loss, with nothing but its folder and the held-out data.
    again = evaluate_loss(folder, config, num_batches=config.eval_batches)
    for name in ('loss', 'accuracy_per_scale'):
        np.testing.assert_allclose(again[name], held_out[name], rtol=1e-5)
    larger = dataclasses.replace(config, data=DataConfig(image_size=32))
    with pytest.raises(UserError, match=r'images of \(16, 16\), but data.image_size is 32'):
        evaluate_loss(folder, larger, num_batches=1)


def save_tokenizer(folder, config, grids=None):
    size = 4 * config.stride
    params = Autoencoder(config).init(jax.random.key(0), jnp.zeros((1, size, size, 3)))['params']
    schedule = None if grids is None else ScaleSchedule.free(grids)
    loaded = model_of(tokenizer_config=config, tokenizer_params=nn.unbox(params), schedule=schedule)
    save_model(folder, loaded)
    return str(folder)


KINDS = ['jsonl', 'tar', 'tfds', 'imagefolder', 'sidecar', 'parquet', 'arrow', 'emoji']


def stored_data(tmp_path):
    """Every kind of source; of the JSONL folder 4 records are broken, one found only by reading."""
    tfds = {'image_field': 'image', 'text_field': 'label'}
    sources = (
        SourceConfig('jsonl', str(jsonl_folder(tmp_path / 'jsonl')), weight=2.0),
        SourceConfig('tar', str(tar_folder(tmp_path / 'tar'))),
        SourceConfig('tfds', str(tfds_folder(tmp_path / 'tfds')), **tfds),
        SourceConfig('imagefolder', str(imagefolder_folder(tmp_path / 'imagefolder'))),
        SourceConfig('sidecar', str(sidecar_folder(tmp_path / 'sidecar'))),
        SourceConfig('parquet', str(parquet_folder(tmp_path / 'parquet')), text_field='caption'),
        SourceConfig('arrow', str(arrow_folder(tmp_path / 'arrow')), text_field='caption'),
        SourceConfig('emoji'),
    )
    return DataConfig(sources=sources, held_out=sources[1:2], max_broken_share=0.3, image_size=16)


def test_all_kinds_of_data_train_together_and_resume_in_the_same_order_with_workers(
    config, tmp_path, monkeypatch, caplog
):
    order = []

    def noted(batch, mesh, inner=put_batch):
        order.append(batch.captions)
        return inner(batch, mesh)

    monkeypatch.setattr(loop, 'put_batch', noted)
    config = dataclasses.replace(config, data=stored_data(tmp_path))
    folder = run(config)
    whole, wanted = order.copy(), losses(config)
    captions = [caption for batch in whole for caption in batch]
    assert len(whole) == 6 and set(KINDS[:-1]) < {c.split()[0] for c in captions}
    assert not {'missing', 'truncated', ''} & set(captions) and '--' not in ' '.join(captions)
    assert 'line 6: image cannot be read' in caplog.text  # the truncated one was replaced
    workers = dataclasses.replace(config.data, num_workers=2)
    cut = dataclasses.replace(config, data=workers, run_dir=str(tmp_path / 'cut'))
    order.clear()
    with pytest.raises(KeyboardInterrupt):
        run(cut, stop_before=6)  # the last checkpoint is of step 4
    assert order == whole
    order.clear()
    run(cut)
    assert order == whole[4:]
    assert losses(cut) == wanted
    kept = load_model(folder).configs.extra['run']['data']['sources']
    assert [source['kind'] for source in kept] == KINDS
    assert str(tmp_path) not in json.dumps(kept)  # paths are nobody else's business


def test_a_batch_is_trained_on_the_grids_of_its_shape(config, tmp_path):
    coarse = dataclasses.replace(TOKENIZER, unshuffle=16, norm_groups=8)
    config = dataclasses.replace(
        config,
        tokenizer=save_tokenizer(tmp_path / 'tokenizer', coarse),
        data=DataConfig(image_size=256, ratios=('1.000', '2.000')),
        transformer=dataclasses.replace(config.transformer, depth=1, max_scales=7),
    )
    models = make_models(config, load_parts(config).configs)
    square, tall = (ScaleSchedule.for_image(ratio, '0.06M') for ratio in ('1.000', '2.000'))
    assert models.schedules == (square, tall)
    variables = nn.unbox(jax.eval_shape(lambda key: models.init(key, True), jax.random.key(0)))
    for schedule in models.schedules:
        pixels = np.zeros((2, *schedule.image_size(), 3), np.uint8)
        ids, lengths = np.zeros((2, 16), np.int32), np.ones(2, np.int32)
        batch = Batch(pixels_BYX3=pixels, ids_BT=ids, lengths_B=lengths)
        seen = []

        def step(params, frozen, batch, seen=seen):
            flips = train_step.batch_flips(jax.random.key(0), batch, models, config)
            inputs, targets = train_step.encode_and_corrupt(flips, frozen, batch, models)
            seen.append(targets.shape[1])
            return train_step.predict({**frozen, **params}, batch, inputs, models)

        frozen = {'tokenizer': load_parts(config).tokenizer_params}
        logits = jax.eval_shape(step, variables, frozen, batch)
        assert seen == [schedule.num_tokens] and logits.shape == (2, schedule.num_tokens, 8, 2)


def test_ratios_want_the_released_grids(config):
    data = DataConfig(image_size=16, ratios=('1.000', '2.000'))
    with pytest.raises(UserError, match='data.ratios are .* made for squares with grids'):
        make_task(dataclasses.replace(config, data=data), make_mesh(devices=jax.devices()[:1]))
