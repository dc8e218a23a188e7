"""Encoder folders: read, written, copied."""

import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy
from helpers import paths

from infinity_jax.errors import UserError
from infinity_jax.weights.t5_folder import load_encoder, save_encoder

GOLDEN = paths.GOLDEN / 't5_tiny'


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_encoder_round_trip(tmp_path):
    config, params = load_encoder(GOLDEN)
    save_encoder(tmp_path, config, params)
    config_again, again = load_encoder(tmp_path)
    assert config_again == config
    same(again, params)
    # Same names and bytes as transformers wrote, apart from the alias of the embedding.
    theirs = safetensors.numpy.load_file(GOLDEN / 'model.safetensors')
    ours = safetensors.numpy.load_file(tmp_path / 'model.safetensors')
    same(ours, {name: theirs[name] for name in ours})
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
    same(again, params)
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


def test_other_architectures_are_refused(tmp_path):
    fields = json.loads((GOLDEN / 'config.json').read_text())
    (tmp_path / 'config.json').write_text(json.dumps(fields | {'feed_forward_proj': 'relu'}))
    with pytest.raises(UserError, match="'relu'"):
        load_encoder(tmp_path)
    del fields['d_kv']
    (tmp_path / 'config.json').write_text(json.dumps(fields))
    with pytest.raises(UserError, match='d_kv'):
        load_encoder(tmp_path)
