"""Prompts to token ids, and T5 encoders as ordinary Hugging Face folders."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import safetensors.numpy
import tokenizers

from infinity_jax.config import TextConfig, UserError
from infinity_jax.t5 import T5Encoder
from infinity_jax.weight_files import is_tensor, name_problems, open_weights, read_json

Params = dict[str, Any]

TOKENIZER_FILES = (
    'tokenizer.json',
    'tokenizer_config.json',
    'special_tokens_map.json',
    'spiece.model',
)
END_TOKEN = '</s>'
PADDED_LENGTHS = (64, 192)  # tokens; beside the model's own text length

# Hugging Face's field -> ours. The released fields keep their names when saved.
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
EMBEDDING_NAMES = ('shared.weight', 'encoder.embed_tokens.weight')  # two names of one matrix
BIAS_NAME = 'encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight'
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


def padded_length(longest: int, limit: int) -> int:
    """The length that texts of up to `longest` tokens are padded to: one of at most three.

    Few lengths mean few compilations, and short ones little work. The text's own length still
    decides what attends to what, so that the padding changes no result.

    Args:
      longest: tokens of the longest text.
      limit: tokens that the model reads at most, its `text_length`; longer texts are cut there.
    """
    return next((n for n in PADDED_LENGTHS if longest <= n < limit), limit)


class TextTokenizer:
    """Cuts prompts into the ids of a Hugging Face tokenizer, always ending in the end token."""

    def __init__(self, files: dict[str, bytes], source: str = 'tokenizer.json'):
        """files: contents of the folder's tokenizer files by name; source: for messages."""
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(files['tokenizer.json'].decode())
        except KeyError:
            raise UserError(
                f'{source}: no tokenizer.json; make one with transformers: '
                'AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)'
            ) from None
        except Exception as error:  # the library raises bare Exception on a malformed file
            raise UserError(f'{source}: tokenizer.json is not a tokenizer ({error})') from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.files = files
        end_id = self._tokenizer.token_to_id(END_TOKEN)
        if end_id is None:
            raise UserError(f'{source}: its vocabulary lacks {END_TOKEN}; wanted a T5 tokenizer')
        self.end_id: int = end_id
        self.vocab_size: int = self._tokenizer.get_vocab_size()

    @classmethod
    def from_folder(cls, folder: str | Path) -> 'TextTokenizer':
        """Reads the tokenizer of a Hugging Face folder."""
        folder = Path(folder)
        files = {n: (folder / n).read_bytes() for n in TOKENIZER_FILES if (folder / n).is_file()}
        return cls(files, str(folder))

    def save(self, folder: str | Path) -> None:
        """Writes the tokenizer's files into `folder`, byte for byte as they were read."""
        for name, content in self.files.items():
            (Path(folder) / name).write_bytes(content)

    def token_counts(self, prompts: list[str]) -> list[int]:
        """Tokens of each prompt, the end token included, before any cut."""
        encodings = self._tokenizer.encode_batch(list(prompts))
        ends = [e.ids[-1:] == [self.end_id] for e in encodings]
        return [len(e.ids) + (not end) for e, end in zip(encodings, ends, strict=True)]

    def __call__(
        self, prompts: list[str], max_length: int, pad_to: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tokenizes a batch.

        Args:
          prompts: none of them blank.
          max_length: longer prompts are cut to this many tokens, the last being the end token.
          pad_to: columns of the result; None takes the longest prompt.

        Returns:
          ids_BT int32, zero behind each prompt's end, and lengths_B int32, end token included.
        """
        blank = [i for i, prompt in enumerate(prompts) if not prompt.strip()]
        if blank or not prompts:
            which = f'prompt {blank[0] + 1} of {len(prompts)}' if blank else 'the list of prompts'
            raise UserError(f'{which} is empty; write what the picture should show')
        rows = []
        for encoding in self._tokenizer.encode_batch(list(prompts)):
            ids = encoding.ids
            if ids and ids[-1] == self.end_id:
                ids = ids[:-1]
            rows.append([*ids[: max_length - 1], self.end_id])
        lengths_B = np.array([len(row) for row in rows], np.int32)
        columns = int(lengths_B.max()) if pad_to is None else pad_to
        if columns < lengths_B.max():
            raise UserError(
                f'pad_to {columns} is below the {lengths_B.max()} tokens of the longest prompt; '
                f'raise it or lower max_length {max_length}'
            )
        ids_BT = np.zeros((len(rows), columns), np.int32)
        for row, ids in zip(ids_BT, rows, strict=True):
            row[: len(ids)] = ids
        return ids_BT, lengths_B


def encoder_shapes(config: TextConfig) -> Params:
    """The encoder's parameter tree as `ShapeDtypeStruct`s, without boxes."""
    ids = jax.ShapeDtypeStruct((1, 1), np.int32)
    lengths = jax.ShapeDtypeStruct((1,), np.int32)
    boxed = jax.eval_shape(T5Encoder(config).init, jax.random.key(0), ids, lengths)
    return nn.unbox(boxed)['params']


def read_text_config(folder: str | Path) -> TextConfig:
    """Reads `config.json` of a T5 v1.1 model; other architectures are refused."""
    path = Path(folder) / 'config.json'
    fields = read_json(path)
    kind = fields.get('model_type')
    activation = fields.get('feed_forward_proj')
    if kind != 't5' or activation != 'gated-gelu':
        raise UserError(
            f'{path}: model_type {kind!r} with feed_forward_proj {activation!r}; wanted '
            "'t5' with 'gated-gelu' (T5 v1.1, Flan-T5)"
        )
    epsilon = fields.get('layer_norm_epsilon', 1e-6)
    if epsilon != 1e-6:
        raise UserError(f'{path}: layer_norm_epsilon is {epsilon}; only 1e-6 is known')
    fields = {'relative_attention_max_distance': 128, **fields}
    missing = [name for name in CONFIG_FIELDS if name not in fields]
    wrong = [n for n in CONFIG_FIELDS if n in fields and not isinstance(fields[n], int)]
    if missing or wrong:
        raise UserError(f'{path}: lacks {missing}, not whole numbers {wrong}; complete it')
    return TextConfig(**{ours: fields[name] for name, ours in CONFIG_FIELDS.items()})


def load_encoder(folder: str | Path, dtype: Any = np.float32) -> tuple[TextConfig, Params]:
    """Loads the encoder of a T5 v1.1 folder; a decoder beside it is skipped, never read.

    Args:
      folder: config.json and model.safetensors, or shards with an index, or pytorch_model.bin.
      dtype: of the returned arrays; None keeps the file's.

    Returns:
      the dimensions, and numpy parameters for `T5Encoder`.

    Raises:
      UserError: with every missing, unknown and misshapen name at once.
    """
    folder = Path(folder)
    config = read_text_config(folder)
    found = {
        name: tensor
        for name, tensor in open_weights(folder).items()
        if is_tensor(tensor) and not name.startswith(('decoder.', 'lm_head.'))
    }
    shapes = encoder_shapes(config)
    wanted = {BIAS_NAME: shapes['relative_bias'].shape}
    wanted['encoder.final_layer_norm.weight'] = shapes['final_norm']['scale'].shape
    for layer in range(config.num_layers):
        for name, path in LAYER_NAMES.items():
            module, leaf = path.split('/')
            shape = shapes['layers'][module][leaf].shape[1:]
            wanted[f'encoder.block.{layer}.{name}'] = shape[::-1]
    embeddings = [n for n in EMBEDDING_NAMES if n in found] or [EMBEDDING_NAMES[0]]
    wanted.update({name: shapes['token_embedding'].shape for name in embeddings})
    problems = name_problems(wanted, {n: t.shape for n, t in found.items()})
    if problems:
        raise UserError(f'{folder}: weights do not fit its config.json: ' + '; '.join(problems))

    def read(name: str) -> np.ndarray:
        array = found[name].read()
        return array if dtype is None else array.astype(dtype)

    layers: Params = {}
    for name, path in LAYER_NAMES.items():
        module, leaf = path.split('/')
        rows = [read(f'encoder.block.{i}.{name}').T for i in range(config.num_layers)]
        layers.setdefault(module, {})[leaf] = np.stack(rows)
    return config, {
        'token_embedding': read(embeddings[0]),
        'relative_bias': read(BIAS_NAME),
        'layers': layers,
        'final_norm': {'scale': read('encoder.final_layer_norm.weight')},
    }


def save_encoder(
    folder: str | Path, config: TextConfig, params: Params, dtype: Any = np.float32
) -> None:
    """Writes an encoder as a Hugging Face folder that transformers' T5EncoderModel loads."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        'shared.weight': params['token_embedding'],
        BIAS_NAME: params['relative_bias'],
        'encoder.final_layer_norm.weight': params['final_norm']['scale'],
    }
    for name, path in LAYER_NAMES.items():
        module, leaf = path.split('/')
        for layer, weight in enumerate(np.asarray(params['layers'][module][leaf])):
            tensors[f'encoder.block.{layer}.{name}'] = weight.T
    arrays = {n: np.ascontiguousarray(np.asarray(t).astype(dtype)) for n, t in tensors.items()}
    safetensors.numpy.save_file(arrays, folder / 'model.safetensors', {'format': 'pt'})
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
        'dtype': np.dtype(dtype).name,
    }
    (folder / 'config.json').write_text(json.dumps(described, indent=2) + '\n', encoding='utf-8')
