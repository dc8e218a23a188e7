"""Encoder folders: read, written, copied."""

import dataclasses
import fnmatch
import json
import shutil

import huggingface_hub
import numpy as np
import pytest
import safetensors.numpy
from helpers import paths
from helpers.models import assert_same

from infinity_jax.errors import UserError
from infinity_jax.weights.safetensors_writer import Spec
from infinity_jax.weights.t5_folder import load_encoder, read_text_config, save_encoder
from infinity_jax.weights.torch_file.writer import TorchWriter

GOLDEN = paths.GOLDEN / 't5_tiny'


def test_encoder_round_trip(tmp_path):
    config, params = load_encoder(GOLDEN)
    save_encoder(tmp_path, config, params)
    config_again, again = load_encoder(tmp_path)
    assert config_again == config
    assert_same(again, params)
    # Same names and bytes as transformers wrote, apart from the alias of the embedding.
    theirs = safetensors.numpy.load_file(GOLDEN / 'model.safetensors')
    ours = safetensors.numpy.load_file(tmp_path / 'model.safetensors')
    assert_same(ours, {name: theirs[name] for name in ours})
    assert set(theirs) - set(ours) <= {'encoder.embed_tokens.weight'}


def test_sharded_encoder_decoder_folder(tmp_path):
    config, params = load_encoder(GOLDEN)
    tensors = safetensors.numpy.load_file(GOLDEN / 'model.safetensors')
    tensors['decoder.final_layer_norm.weight'] = np.zeros(3, np.float32)
    tensors['lm_head.weight'] = np.zeros((3, 3), np.float32)
    names = sorted(tensors)
    weight_map = {n: f'part{i % 2}.safetensors' for i, n in enumerate(names)}
    for part in set(weight_map.values()):
        inside = {n: tensors[n] for n in names if weight_map[n] == part}
        safetensors.numpy.save_file(inside, tmp_path / part)
    index = tmp_path / 'model.safetensors.index.json'
    index.write_text(json.dumps({'weight_map': weight_map}))
    shutil.copy(GOLDEN / 'config.json', tmp_path)
    config_again, again = load_encoder(tmp_path)
    assert config_again == config
    assert_same(again, params)
    (tmp_path / 'part1.safetensors').unlink()
    with pytest.raises(UserError, match='shards missing: part1.safetensors'):
        load_encoder(tmp_path)


def test_all_wrong_weights_are_named_at_once(tmp_path):
    tensors = safetensors.numpy.load_file(GOLDEN / 'model.safetensors')
    first = 'encoder.block.0.layer.0.SelfAttention.'
    del tensors[first + 'q.weight']
    tensors[first + 'k.weight'] = np.zeros((2, 3), np.float32)
    tensors['encoder.surprise'] = np.zeros(1, np.float32)
    safetensors.numpy.save_file(tensors, tmp_path / 'model.safetensors')
    shutil.copy(GOLDEN / 'config.json', tmp_path)
    with pytest.raises(UserError) as caught:
        load_encoder(tmp_path)
    message = str(caught.value)
    assert 'missing ' + first + 'q.weight' in message
    assert first + 'k.weight has shape (2, 3)' in message
    assert 'unknown encoder.surprise' in message and '\n' not in message


def write_fields(folder, fields):
    (folder / 'config.json').write_text(json.dumps(fields))


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'model_type': 'bert'}, "model_type is 'bert', wanted 't5'"),
        ({'model_type': 'umt5'}, "model_type is 'umt5', wanted 't5'"),
        ({'feed_forward_proj': 'relu'}, "feed_forward_proj is 'relu', wanted 'gated-gelu'"),
        ({'layer_norm_epsilon': 1e-5}, 'layer_norm_epsilon is 1e-05, wanted 1e-06'),
        ({'d_ff': 1.5, 'd_kv': 0}, 'd_kv is 0, d_ff is 1.5; wanted whole numbers from 1 on'),
        ({'relative_attention_num_buckets': 2}, 'relative_attention_num_buckets is 2'),
        ({'relative_attention_max_distance': 8}, 'relative_attention_max_distance 8; wanted'),
    ],
)
def test_other_architectures_are_refused(tmp_path, changes, message):
    write_fields(tmp_path, json.loads((GOLDEN / 'config.json').read_text()) | changes)
    with pytest.raises(UserError, match=message) as caught:
        read_text_config(tmp_path)
    assert str(caught.value).startswith(f'{tmp_path}/config.json: ')
    assert '\n' not in str(caught.value)


def test_absent_fields_have_the_defaults_of_t5(tmp_path):
    fields = json.loads((GOLDEN / 'config.json').read_text())
    wanted = dataclasses.replace(read_text_config(GOLDEN), head_dim=64)  # T5Config's d_kv
    for name in ('d_kv', 'relative_attention_max_distance', 'layer_norm_epsilon'):
        del fields[name]
    write_fields(tmp_path, fields)
    assert read_text_config(tmp_path) == wanted
    del fields['feed_forward_proj']
    write_fields(tmp_path, fields)
    with pytest.raises(UserError, match="feed_forward_proj is 'relu', wanted 'gated-gelu'"):
        read_text_config(tmp_path)
    write_fields(tmp_path, {'vocab_size': 8})
    with pytest.raises(UserError, match="model_type is None, wanted 't5'"):
        read_text_config(tmp_path)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A faked hub with one repository; returns its files and the downloads asked for."""
    files, snapshot, asked = tmp_path / 'files', tmp_path / 'snapshot', []

    def download(name, allow_patterns, **options):
        asked.append(name)
        snapshot.mkdir(exist_ok=True)
        for path in files.iterdir():
            if any(fnmatch.fnmatch(path.name, pattern) for pattern in allow_patterns):
                shutil.copy(path, snapshot)
                asked.append(path.name)
        return str(snapshot)

    files.mkdir()
    shutil.copy(GOLDEN / 'config.json', files)
    (files / 'tf_model.h5').write_bytes(b'never read')
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', download)
    return files, asked


def test_a_repository_with_safetensors(repository):
    files, asked = repository
    shutil.copy(GOLDEN / 'model.safetensors', files)
    (files / 'pytorch_model.bin').write_bytes(b'never read')
    config, params = load_encoder('google/flan-t5-xl')
    wanted_config, wanted = load_encoder(GOLDEN)
    assert config == wanted_config
    assert_same(params, wanted)
    assert set(asked) == {'google/flan-t5-xl', 'config.json', 'model.safetensors'}


def test_a_repository_with_torch_files_alone(repository):
    files, asked = repository
    tensors = safetensors.numpy.load_file(GOLDEN / 'model.safetensors')
    specs = {name: Spec(t.shape, t.dtype) for name, t in tensors.items()}
    with TorchWriter(files / 'pytorch_model.bin', specs) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
    assert_same(load_encoder('google/t5-v1_1-xl')[1], load_encoder(GOLDEN)[1])
    assert 'pytorch_model.bin' in asked and 'tf_model.h5' not in asked


def test_a_repository_of_another_architecture_is_refused_before_its_weights_come(repository):
    files, asked = repository
    write_fields(files, {'model_type': 'bert'})
    shutil.copy(GOLDEN / 'model.safetensors', files)
    with pytest.raises(UserError, match="model_type is 'bert'"):
        load_encoder('org/bert')
    assert asked == ['org/bert', 'config.json']


def test_bin_shards_next_to_an_index_of_absent_safetensors(tmp_path):
    """The usual download of `*.json` and `*.bin` alone."""
    config, params = load_encoder(GOLDEN)
    tensors = safetensors.numpy.load_file(GOLDEN / 'model.safetensors')
    names = sorted(tensors)
    for ending, stem in (('safetensors', 'model'), ('bin', 'pytorch_model')):
        weight_map = {n: f'{stem}-0000{1 + i % 2}-of-00002.{ending}' for i, n in enumerate(names)}
        index = tmp_path / f'{stem}.{ending}.index.json'
        index.write_text(json.dumps({'weight_map': weight_map}))
    for shard in set(weight_map.values()):
        inside = {n: tensors[n] for n in names if weight_map[n] == shard}
        specs = {name: Spec(array.shape, array.dtype) for name, array in inside.items()}
        with TorchWriter(tmp_path / shard, specs) as writer:
            for name, array in inside.items():
                writer.write(name, array)
    shutil.copy(GOLDEN / 'config.json', tmp_path)
    config_again, again = load_encoder(tmp_path)
    assert config_again == config
    assert_same(again, params)
    for shard in set(weight_map.values()):
        (tmp_path / shard).unlink()
    with pytest.raises(UserError, match='shards missing: model-00001-of-00002.safetensors'):
        load_encoder(tmp_path)
    shutil.copy(GOLDEN / 'model.safetensors', tmp_path)  # a whole file wins over both
    assert_same(load_encoder(tmp_path)[1], params)
