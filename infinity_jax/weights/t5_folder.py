"""T5 encoders as Hugging Face folders: reads them onto devices, writes and copies them."""

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from infinity_jax.config import TextConfig
from infinity_jax.errors import UserError
from infinity_jax.runtime.hub import local_folder
from infinity_jax.sharding import read_placed, shardings_of
from infinity_jax.text.pretrained import complete_config
from infinity_jax.text.t5 import T5Encoder
from infinity_jax.weights.safetensors_writer import ShardWriter, Spec
from infinity_jax.weights.weight_files import (
    Index,
    LazyTensor,
    is_tensor,
    name_problems,
    open_weights,
    read_json,
)

Params = dict[str, Any]

# Hugging Face's field -> ours.
CONFIG_FIELDS = {
    'vocab_size': 'vocab_size',
    'd_model': 'width',
    'num_layers': 'num_layers',
    'num_heads': 'num_heads',
    'd_kv': 'head_dim',
    'd_ff': 'ffn_width',
    'relative_attention_num_buckets': 'buckets',
    'relative_attention_max_distance': 'max_distance',
}
# Hugging Face's field -> the value that `text/t5.py` implements.
REQUIRED_FIELDS = {
    'model_type': 't5',
    'feed_forward_proj': 'gated-gelu',
    'layer_norm_epsilon': 1e-6,
}
# T5's values of fields that the released T5 v1.1 folders leave out.
DEFAULTS = {'relative_attention_max_distance': 128, 'layer_norm_epsilon': 1e-6}
EMBEDDING_NAMES = ('shared.weight', 'encoder.embed_tokens.weight')  # two names of one matrix
# Torch's name -> our path, of what all layers share.
WHOLE_NAMES = {
    EMBEDDING_NAMES[0]: 'token_embedding',
    'encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight': 'relative_bias',
    'encoder.final_layer_norm.weight': 'final_norm/scale',
}
# Name inside a block -> our path under `layers`. Linear weights (out, in) are transposed.
LAYER_NAMES = {
    'layer.0.layer_norm.weight': 'attention_norm/scale',
    'layer.0.SelfAttention.q.weight': 'query/kernel',
    'layer.0.SelfAttention.k.weight': 'key/kernel',
    'layer.0.SelfAttention.v.weight': 'value/kernel',
    'layer.0.SelfAttention.o.weight': 'out/kernel',
    'layer.1.layer_norm.weight': 'ffn_norm/scale',
    'layer.1.DenseReluDense.wi_0.weight': 'ffn_gate/kernel',
    'layer.1.DenseReluDense.wi_1.weight': 'ffn_up/kernel',
    'layer.1.DenseReluDense.wo.weight': 'ffn_down/kernel',
}


@functools.cache
def encoder_shapes(config: TextConfig, boxed: bool = False) -> Params:
    """The encoder's parameter tree as `ShapeDtypeStruct`s; boxed ones carry their axis names."""
    ids = jax.ShapeDtypeStruct((1, 1), np.int32)
    lengths = jax.ShapeDtypeStruct((1,), np.int32)
    shapes = jax.eval_shape(T5Encoder(config).init, jax.random.key(0), ids, lengths)['params']
    return shapes if boxed else nn.unbox(shapes)


def read_text_config(folder: str | Path) -> TextConfig:
    """Reads `config.json` of a T5 v1.1 model.

    Args:
      folder: a folder, or org/name of a repository, of which only `config.json` is downloaded.

    Raises:
      UserError: there is no such folder or repository, or the model has another architecture.
    """
    folder = local_folder(folder, files=('config.json',))
    path = folder / 'config.json'
    fields = {**DEFAULTS, **read_json(path)}
    _check_fields(path, fields, {'model_type': REQUIRED_FIELDS['model_type']})
    if not {*REQUIRED_FIELDS, *CONFIG_FIELDS} <= fields.keys():
        fields = complete_config(folder)
    _check_fields(path, fields, REQUIRED_FIELDS)
    wrong = [
        f'{name} is {fields[name]!r}'
        for name in CONFIG_FIELDS
        if type(fields[name]) is not int or fields[name] < 1
    ]
    if wrong:
        raise UserError(f'{path}: {", ".join(wrong)}; wanted whole numbers from 1 on')
    buckets, distance = (fields[f'relative_attention_{n}'] for n in ('num_buckets', 'max_distance'))
    # Half of the buckets serve each direction; the second half of these grow logarithmically.
    if buckets < 4 or distance <= buckets // 4:
        raise UserError(
            f'{path}: relative_attention_num_buckets is {buckets} and '
            f'relative_attention_max_distance {distance}; wanted at least 4, and more '
            'than a quarter of the buckets'
        )
    try:
        return TextConfig(**{ours: fields[name] for name, ours in CONFIG_FIELDS.items()})
    except UserError as error:
        raise UserError(f'{path}: {error}') from None


def _check_fields(path: Path, fields: Mapping[str, Any], required: Mapping[str, Any]) -> None:
    wrong = [
        f'{name} is {fields.get(name)!r}, wanted {value!r}'
        for name, value in required.items()
        if fields.get(name) != value
    ]
    if wrong:
        raise UserError(f'{path}: {"; ".join(wrong)}: name a T5 v1.1 encoder, such as a Flan-T5')


def _weights_folder(name: str | Path) -> Path:
    """The folder of a model's weights; of a repository, safetensors are preferred."""
    folder = local_folder(name, files=('config.json', '*.safetensors', '*.safetensors.index.json'))
    if Path(name).exists() or any(folder.glob('*.safetensors')):
        return folder
    return local_folder(name, files=('config.json', 'pytorch_model*.bin*'))


def open_encoder(
    folder: str | Path, config: TextConfig | None = None, *, verify: bool = True
) -> tuple[TextConfig, dict[str, LazyTensor]]:
    """Opens the encoder of a T5 v1.1 model without reading its tensors; ignores a decoder.

    Args:
      folder: with config.json and model.safetensors, or shards with an index, or
        pytorch_model.bin; or org/name of a repository with such files.
      config: the dimensions, if they were read already.
      verify: whether reading safetensors compares their hashes, where they have some, and refuses
        NaN, infinity and matrices of zeros.

    Returns:
      the dimensions, and the tensors by their torch names; of the two names that the embedding
      may have, the first.

    Raises:
      UserError: with every missing, unknown and misshapen name at once.
    """
    config = config or read_text_config(folder)
    folder = _weights_folder(folder)
    found = {
        name: tensor
        for name, tensor in open_weights(folder, verify=verify, refuse_values=True).items()
        if is_tensor(tensor) and not name.startswith(('decoder.', 'lm_head.'))
    }
    wanted = _torch_shapes(config)
    embedding = wanted.pop(EMBEDDING_NAMES[0])
    names = [n for n in EMBEDDING_NAMES if n in found] or [EMBEDDING_NAMES[0]]
    wanted.update(dict.fromkeys(names, embedding))
    problems = name_problems(wanted, {n: t.shape for n, t in found.items()})
    if problems:
        raise UserError(f'{folder}: weights do not fit its config.json: ' + '; '.join(problems))
    tensors = {EMBEDDING_NAMES[0]: found[names[0]]}
    return config, tensors | {n: t for n, t in found.items() if n not in EMBEDDING_NAMES}


def _torch_shapes(config: TextConfig) -> dict[str, tuple[int, ...]]:
    shapes = flatten_dict(encoder_shapes(config), sep='/')
    wanted = {name: shapes[path].shape for name, path in WHOLE_NAMES.items()}
    for layer in range(config.num_layers):
        for name, path in LAYER_NAMES.items():
            wanted[f'encoder.block.{layer}.{name}'] = shapes[f'layers/{path}'].shape[:0:-1]
    return wanted


def load_encoder(
    folder: str | Path,
    dtype: Any = np.float32,
    mesh: Mesh | None = None,
    config: TextConfig | None = None,
    *,
    verify: bool = True,
) -> tuple[TextConfig, Params]:
    """Loads the encoder of a T5 v1.1 model; a decoder is not read.

    Args:
      folder: as `open_encoder` takes it.
      dtype: of the returned arrays; None keeps the file's.
      mesh: where the arrays go, shard by shard; None gives numpy.
      config, verify: see `open_encoder`.

    Returns:
      the dimensions, and parameters for `T5Encoder`.

    Raises:
      UserError: with every missing, unknown and misshapen name at once, or a damaged tensor.
    """
    config, tensors = open_encoder(folder, config, verify=verify)
    boxed = encoder_shapes(config, boxed=True)
    shapes = flatten_dict(nn.unbox(boxed), sep='/')
    shardings = flatten_dict(shardings_of(boxed, mesh), sep='/') if mesh is not None else {}

    def whole(name: str, path: str) -> Any:
        own = dtype or tensors[name].dtype
        return read_placed(tensors[name].read, shapes[path].shape, own, shardings.get(path))

    def stacked(name: str, path: str) -> Any:
        layers = [tensors[f'encoder.block.{i}.{name}'] for i in range(config.num_layers)]
        common = np.dtype(dtype or np.result_type(*{layer.dtype for layer in layers}))

        def read(index: Index) -> np.ndarray:
            """Torch's (out, in) of each layer of the index, transposed."""
            first, *rest = index or (slice(None),)
            assert isinstance(first, slice)  # of a shard, or all
            chosen = layers[first]
            for i, layer in enumerate(chosen):
                row = layer.read(tuple(rest[::-1])).T
                if i == 0:
                    block = np.empty((len(chosen), *row.shape), common)
                block[i] = row
            return block

        return read_placed(read, shapes[path].shape, common, shardings.get(path))

    params = {path: whole(name, path) for name, path in WHOLE_NAMES.items()}
    for name, path in LAYER_NAMES.items():
        params[f'layers/{path}'] = stacked(name, f'layers/{path}')
    return config, unflatten_dict(params, sep='/')


def save_encoder(
    folder: str | Path, config: TextConfig, params: Params, dtype: Any = np.float32
) -> None:
    """Writes an encoder as a Hugging Face folder that transformers' T5EncoderModel loads."""
    flat = flatten_dict(params, sep='/')
    specs = {name: Spec(shape, np.dtype(dtype)) for name, shape in _torch_shapes(config).items()}
    with _encoder_writer(Path(folder), config, specs) as writer:
        for name, path in WHOLE_NAMES.items():
            writer.write(name, np.asarray(flat[path]).astype(dtype))
        for name, path in LAYER_NAMES.items():
            for layer, weight in enumerate(flat[f'layers/{path}']):
                writer.write(f'encoder.block.{layer}.{name}', np.asarray(weight).T.astype(dtype))


def copy_encoder(source: str | Path, folder: Path, dtype: Any = None) -> TextConfig:
    """Streams the encoder of one Hugging Face folder into another, tensor by tensor.

    Args:
      source: as `open_encoder` takes it.
      folder: the target, created if needed.
      dtype: of the copy; None keeps the source's.
    """
    config, tensors = open_encoder(source)
    specs = {n: Spec(tuple(t.shape), np.dtype(dtype or t.dtype)) for n, t in tensors.items()}
    with _encoder_writer(folder, config, specs) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor.read().astype(specs[name].dtype, copy=False))
    return config


def _encoder_writer(folder: Path, config: TextConfig, specs: dict[str, Spec]) -> ShardWriter:
    """Creates the folder with its config.json and returns the writer of its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = dataclasses.asdict(config)
    described = {
        'architectures': ['T5EncoderModel'],
        'model_type': 't5',
        **{name: fields[ours] for name, ours in CONFIG_FIELDS.items()},
        'feed_forward_proj': 'gated-gelu',
        'layer_norm_epsilon': 1e-6,
        'is_encoder_decoder': False,
        'use_cache': False,
        'tie_word_embeddings': True,
        'pad_token_id': 0,
        'eos_token_id': 1,
        'dropout_rate': 0.1,
        'dtype': specs[EMBEDDING_NAMES[0]].dtype.name,
    }
    (folder / 'config.json').write_text(json.dumps(described, indent=2) + '\n', encoding='utf-8')
    return ShardWriter(folder, 'model', specs)
