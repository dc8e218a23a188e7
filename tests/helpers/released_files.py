"""Writes full-size random weights in the released formats, to try import and export with.

    python tests/helpers/released_files.py OUT --model 2b
    python tests/helpers/released_files.py OUT --model 8b --dtype bfloat16

leaves infinity_2b_reg.pth (8.8 GB), infinity_vae_d32reg.pth and flan-t5-xl/ (5.0 GB), or
infinity_8b_weights/ (16.8 GB in shards) and infinity_vae_d56_f8_14_patchify.pth. Names and shapes
are those of the released files, listed in golden/checkpoint_keys.json.
"""

import argparse
import json
import pathlib
import shutil

import ml_dtypes
import numpy as np
from helpers.paths import GOLDEN
from helpers.paths import VOCABULARY as DEMO_VOCABULARY
from tqdm import tqdm

from infinity_jax.weights.safetensors_writer import ShardWriter, Spec
from infinity_jax.weights.torch_file.writer import TorchWriter

KEYS = GOLDEN / 'checkpoint_keys.json'
VOCABULARY = DEMO_VOCABULARY / 'tokenizer.json'
DTYPES = {'float32': np.float32, 'bfloat16': ml_dtypes.bfloat16}
NOISE = np.random.default_rng(0).standard_normal(2**22 + 1).astype(np.float32)
T5_XL = {
    'vocab_size': 32128, 'd_model': 2048, 'num_layers': 24, 'num_heads': 32, 'd_kv': 64,
    'd_ff': 5120, 'relative_attention_num_buckets': 32, 'relative_attention_max_distance': 128,
    'model_type': 't5', 'feed_forward_proj': 'gated-gelu', 'layer_norm_epsilon': 1e-6,
}  # fmt: skip


def transformer_names(model: str) -> dict[str, list[int]]:
    """Name -> shape; of the 8B the file lists two blocks, and the other 38 are alike."""
    listed = json.loads(KEYS.read_text())
    if model == '2b':
        return listed['infinity_2b']
    names = {}
    for name, shape in listed['infinity_8b_first_two_of_40_blocks'].items():
        if name.startswith('blocks.1.'):
            continue
        rest = name.removeprefix('blocks.0.')
        if rest == name:
            names[name] = shape
            continue
        for chunk in range(8):
            for i in range(5):
                names[f'block_chunks.{chunk}.module.{i}.{rest}'] = shape
    return names


def t5_names() -> dict[str, list[int]]:
    """The encoder of Flan-T5-XL, and a stub of a decoder that an import has to pass over."""
    width, inner, hidden = 2048, 32 * 64, 5120
    names = {'shared.weight': [32128, width], 'decoder.final_layer_norm.weight': [width]}
    for i in range(24):
        block = f'encoder.block.{i}.layer'
        for name in 'qkv':
            names[f'{block}.0.SelfAttention.{name}.weight'] = [inner, width]
        names[f'{block}.0.SelfAttention.o.weight'] = [width, inner]
        names[f'{block}.0.layer_norm.weight'] = [width]
        names[f'{block}.1.DenseReluDense.wi_0.weight'] = [hidden, width]
        names[f'{block}.1.DenseReluDense.wi_1.weight'] = [hidden, width]
        names[f'{block}.1.DenseReluDense.wo.weight'] = [width, hidden]
        names[f'{block}.1.layer_norm.weight'] = [width]
    bias = 'encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight'
    return names | {bias: [32, 32], 'encoder.final_layer_norm.weight': [width]}


def values(name: str, spec: Spec) -> np.ndarray:
    """Values of usual sizes; constants where the released files hold them."""
    shape, count = spec.shape, int(np.prod(spec.shape))
    if name.endswith('lfq.mask'):
        return 2 ** np.arange(count - 1, -1, -1)
    if name.endswith(('zero_k_bias', 'bias')) and len(shape) == 1:
        return np.zeros(shape, spec.dtype)
    if 'norm' in name:
        return np.ones(shape, spec.dtype)
    if name.endswith('scale_mul_1H11'):
        return np.full(shape, np.log(4), spec.dtype)
    fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 1
    return (np.resize(NOISE, count) / fan_in**0.5).astype(spec.dtype).reshape(shape)


def specs_of(names: dict[str, list[int]], dtype: str) -> dict[str, Spec]:
    def kind(name):
        return np.dtype(np.int64 if name.endswith('lfq.mask') else DTYPES[dtype])

    return {name: Spec(tuple(shape), kind(name)) for name, shape in names.items()}


def write(writer, specs: dict[str, Spec]) -> None:
    with writer:
        for name, spec in tqdm(specs.items()):
            writer.write(name, values(name, spec))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('out', type=pathlib.Path)
    parser.add_argument('--model', choices=['2b', '8b'], default='2b')
    parser.add_argument('--dtype', choices=list(DTYPES), default='float32')
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    listed = json.loads(KEYS.read_text())
    specs = specs_of(transformer_names(args.model), args.dtype)
    if args.model == '8b':
        folder = args.out / 'infinity_8b_weights'
        folder.mkdir(exist_ok=True)
        write(ShardWriter(folder, 'model', specs), specs)
        specs = specs_of(listed['vae_d14_patch8'], 'float32')
        name = 'infinity_vae_d56_f8_14_patchify.pth'
        write(TorchWriter(args.out / name, specs, ('vae',)), specs)
        return
    write(TorchWriter(args.out / 'infinity_2b_reg.pth', specs), specs)
    specs = specs_of(listed['vae_d32_patch16'], 'float32')
    write(TorchWriter(args.out / 'infinity_vae_d32reg.pth', specs, ('vae',)), specs)
    folder = args.out / 'flan-t5-xl'
    folder.mkdir(exist_ok=True)
    (folder / 'config.json').write_text(json.dumps(T5_XL))
    shutil.copy(VOCABULARY, folder)
    specs = specs_of(t5_names(), args.dtype)
    write(ShardWriter(folder, 'model', specs), specs)


if __name__ == '__main__':
    main()
