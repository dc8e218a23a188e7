"""Stored features: training on them equals training on images, and interrupted work continues."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.data_folders import encoded, jsonl_folder, line, tar_folder
from helpers.models import model_of

from infinity_jax.config import TokenizerConfig, TransformerConfig
from infinity_jax.data.batch import Batch
from infinity_jax.data.config import DataConfig, SourceConfig
from infinity_jax.data.features.reader import FeatureSource
from infinity_jax.data.pipeline import training_batches
from infinity_jax.errors import UserError
from infinity_jax.scales import ScaleSchedule
from infinity_jax.sharding import make_mesh
from infinity_jax.tokenizer.autoencoder import Autoencoder
from infinity_jax.tools import precompute
from infinity_jax.tools.precompute import Precompute
from infinity_jax.training.batches import put_batch
from infinity_jax.training.optimizer import OptimizerConfig
from infinity_jax.training.transformer.config import T2IConfig, TextTraining
from infinity_jax.training.transformer.parts import load_parts
from infinity_jax.training.transformer.step import encode, make_models
from infinity_jax.training.transformer.task import make_task
from infinity_jax.weights.model_folder import save_model

TOKENIZER = TokenizerConfig(
    bits=8, base_channels=8, channel_multipliers=(1,), residual_blocks=1, unshuffle=4, norm_groups=4
)  # fmt: skip
LONG = 'A cat. It sits on a mat. It is grey. It sleeps. Nobody minds.'  # three cuts and the lead
OPTIONS = Precompute(shard_records=4, batch_per_device=1, text_dtype='float32')


def save_tokenizer(folder, seed):
    init = jax.jit(Autoencoder(TOKENIZER).init)
    params = nn.unbox(init(jax.random.key(seed), jnp.zeros((1, 16, 16, 3)))['params'])
    loaded = model_of(
        tokenizer_config=TOKENIZER,
        tokenizer_params=params,
        schedule=ScaleSchedule.free(((1, 1), (2, 2), (4, 4))),
    )
    save_model(folder, loaded)
    return str(folder)


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    """A run on two sources with a frozen text encoder; a record in each has a missing image."""
    folder = tmp_path_factory.mktemp('precompute')
    photos = jsonl_folder(folder / 'photos', count=9, broken=False)
    (photos / 'long.jpg').write_bytes(encoded(64, 64, 5))
    described = {'long_caption': LONG, 'long_caption_type': 'machine', 'text': 'a cat'}
    lines = [line('long.jpg', **described), line('missing.jpg', text='missing')]
    (photos / 'more.jsonl').write_text('\n'.join(lines))
    sources = (
        SourceConfig('jsonl', str(photos), weight=2.0),
        SourceConfig('tar', str(tar_folder(folder / 'tar'))),
    )
    return T2IConfig(
        task='t2i',
        run_dir=str(folder / 'run'),
        tokenizer=save_tokenizer(folder / 'tokenizer', 0),
        steps=4,
        batch_size=4,
        eval_batches=1,
        optimizer=OptimizerConfig(learning_rate=1e-2, ema_decay=0.9),
        data=DataConfig(
            sources=sources, image_size=16, max_broken_share=0.2, held_out_share=0.3
        ),
        transformer=TransformerConfig(
            depth=1, width=32, num_heads=2, bits=8, text_channels=128, text_length=20, max_scales=3,
            dtype='float32',
        ),
        text=TextTraining(),
    )  # fmt: skip


@pytest.fixture(scope='module')
def folders(config, tmp_path_factory):
    return precompute.precompute(config, tmp_path_factory.mktemp('features'), OPTIONS)


def on_features(config, folders, **fields):
    """The run with its sources replaced by features of them."""
    sources = tuple(
        dataclasses.replace(source, kind='features', path=str(folder))
        for source, folder in zip(config.data.sources, folders, strict=True)
    )
    data = dataclasses.replace(config.data, sources=sources)
    return dataclasses.replace(config, data=data, **fields)


def fields(batch):
    """Names of the fields that a batch has."""
    return frozenset(name for name, value in batch._asdict().items() if value is not None)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_training_on_features_equals_training_on_images(config, folders):
    mesh, seen = make_mesh(devices=jax.devices()[:1]), []
    for each in (config, on_features(config, folders)):
        task = make_task(each, mesh)
        state, losses, captions, kinds = task.init(jax.random.key(0)), [], [], set()
        for _ in range(4):
            batch = next(task.batches)
            captions += batch.captions
            kinds |= fields(batch)
            state, metrics = task.train_step(state, put_batch(batch, mesh))
            losses.append(float(metrics['loss']))
        losses.append(float(task.evaluate(state)['loss']))  # the same records are held out
        seen.append((captions, losses, kinds))
    (captions, losses, of_images), (again, from_features, of_features) = seen
    assert 'pixels_BYX3' in of_images and 'ids_BT' in of_images
    assert of_features == {'features_Bhwd', 'text_BTE', 'lengths_B', 'captions'}
    assert captions == again
    np.testing.assert_allclose(losses, from_features, rtol=1e-5)


def test_every_caption_that_training_may_sample_is_stored(config, folders, tmp_path):
    loaded = load_parts(config)
    models = make_models(config, loaded.configs)
    source = FeatureSource.open(SourceConfig('features', str(folders[0])))
    table = source.table()
    records = [source.read(tuple(location.tolist())) for location in table.locations]
    assert len(records) == 10 and table.sizes[:2].tolist() == [[64, 128], [64, 64]]
    assert records[0].name == '0.500_1.jsonl line 1'  # as in the source: the same split
    cat = next(record for record in records if 'a cat' in record.captions.short)
    assert len(cat.captions.every()) == 4
    for caption in cat.captions.every():
        ids, lengths = loaded.text_tokenizer([caption], 20, 20)
        wanted = models.text_encoder.apply({'params': loaded.text_params}, ids, lengths)
        np.testing.assert_allclose(
            cat.text(caption), np.asarray(wanted)[0, : lengths[0]], atol=1e-5
        )
    whole = dataclasses.replace(OPTIONS, text='whole', text_dtype='bfloat16', dtype='float16')
    folder = precompute.precompute(config, tmp_path, whole)[0]
    source = FeatureSource.open(SourceConfig('features', str(folder)))
    records = [source.read(tuple(location.tolist())) for location in source.table().locations]
    cat = next(record for record in records if 'a cat' in record.captions.short)
    assert cat.captions.every() == ('a cat', LONG) and cat.features.dtype == np.float16
    assert cat.text(LONG).dtype == jnp.bfloat16 and cat.text(LONG).shape[1] == 128


def test_interrupted_work_continues_to_the_same_bytes(config, folders, tmp_path, monkeypatch):
    written = []

    def add(writer, record, inner=precompute.ShardWriter.add):
        written.append(record)
        if len(written) == 7:  # the second shard is half written, and not closed
            raise KeyboardInterrupt
        inner(writer, record)

    with monkeypatch.context() as patch:
        patch.setattr(precompute.ShardWriter, 'add', add)
        with pytest.raises(KeyboardInterrupt):
            precompute.precompute(config, tmp_path, OPTIONS)
    there = {path.name for path in (tmp_path / '0_jsonl').iterdir()}
    assert '00001-of-00003.array_record.partial' in there
    assert '00001-of-00003.array_record' not in there
    with pytest.raises(UserError, match='2 of 3 shards are missing, the first 00001-of-00003.*aga'):
        FeatureSource.open(SourceConfig('features', str(tmp_path / '0_jsonl')))
    first = (tmp_path / '0_jsonl' / '00000-of-00003.array_record').stat().st_mtime_ns
    again = precompute.precompute(config, tmp_path, OPTIONS)
    assert [contents(folder) for folder in again] == [contents(folder) for folder in folders]
    assert (again[0] / '00000-of-00003.array_record').stat().st_mtime_ns == first  # kept


def test_several_processes_share_the_shards(config, folders, tmp_path):
    for index in (1, 0):
        hosts = {'process_index': index, 'process_count': 2}
        again = precompute.precompute(config, tmp_path, OPTIONS, **hosts)
        names = {path.name for path in again[0].glob('*.array_record')}
        assert ('00001-of-00003.array_record' in names) and (len(names) == (1 if index else 3))
    assert [contents(folder) for folder in again] == [contents(folder) for folder in folders]


def test_features_of_other_parts_are_refused(config, folders, tmp_path):
    mesh = make_mesh(devices=jax.devices()[:1])
    run = on_features(config, folders)

    def refused(match, **fields):
        with pytest.raises(UserError, match=match) as caught:
            make_task(dataclasses.replace(run, **fields), mesh)
        assert '\n' not in str(caught.value)

    other = save_tokenizer(tmp_path / 'other', 1)
    refused("0_jsonl: its features were made with tokenizer '.*but this run has", tokenizer=other)
    refused('text.train is True', text=TextTraining(train=True))
    shorter = dataclasses.replace(config.transformer, text_length=9)
    refused('made with text.length 20, but this run has 9', transformer=shorter)
    with pytest.raises(UserError, match="other features: their tokenizer is '.*another folder"):
        precompute.precompute(
            dataclasses.replace(config, tokenizer=other), folders[0].parent, OPTIONS
        )
    info = json.loads((folders[0] / 'features.json').read_text())
    assert info['text']['captions'] == 'all' and info['tokenizer'] and info['image_size'] == 16


def test_features_and_images_train_together_in_batches_of_their_own(config, folders, tmp_path):
    trained = dataclasses.replace(config, text=TextTraining(train=True))
    bare = precompute.precompute(trained, tmp_path, OPTIONS)[1]  # without text features
    sources = (
        SourceConfig('features', str(folders[0])),
        SourceConfig('features', str(bare)),
        SourceConfig('emoji'),
    )
    data = dataclasses.replace(config.data, sources=sources, index_dir=str(tmp_path / 'index'))
    batches = training_batches(
        dataclasses.replace(data, num_workers=1, held_out_share=0.0), batch_size=4,
        text_tokenizer=load_parts(config).text_tokenizer, text_length=20,
    )  # fmt: skip
    kinds = [fields(next(batches)) for _ in range(6)]
    batches.close()
    rest = {'captions', 'lengths_B'}
    assert set(kinds) == {
        frozenset({'features_Bhwd', 'text_BTE', *rest}),
        frozenset({'features_Bhwd', 'ids_BT', *rest}),
        frozenset({'pixels_BYX3', 'ids_BT', *rest}),
    }


def test_sixteen_bit_features_are_quantized_as_float32(config, folders):
    models = make_models(config, load_parts(config).configs)
    source = FeatureSource.open(SourceConfig('features', str(folders[0])))
    features = source.read(tuple(source.table().locations[0].tolist())).features[None]
    stored = encode({}, Batch(features_Bhwd=features.astype(np.float16)), models)
    assert stored.dtype == jnp.float32
    np.testing.assert_allclose(stored, features, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ('fields', 'match'),
    [
        ({'dtype': 'int8'}, "--dtype is 'int8'; wanted one of float32"),
        ({'text': 'some'}, "--text is 'some'; wanted one of all"),
        ({'shard_records': 0}, '--shard-records is 0'),
    ],
)
def test_bad_options_are_user_errors(fields, match):
    with pytest.raises(UserError, match=match):
        Precompute(**fields)


def test_sources_that_cannot_be_stored_are_refused(config, tmp_path):
    emoji = dataclasses.replace(config, data=DataConfig(image_size=16))
    with pytest.raises(UserError, match='emoji cannot be stored as features'):
        precompute.precompute(emoji, tmp_path)
    trained = dataclasses.replace(config, text=TextTraining(train=True))
    with pytest.raises(UserError, match='--text is all, but text.train is True'):
        precompute.precompute(trained, tmp_path, Precompute(text='all'))
    with pytest.raises(UserError, match=r'no features.json in there; run'):
        FeatureSource.open(SourceConfig('features', str(tmp_path)))
