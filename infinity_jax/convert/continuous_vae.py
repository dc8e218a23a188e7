"""Reads continuous autoencoders of the VQGAN, LDM and FLUX family as a start for a tokenizer.

Their networks differ from ours in three ways. Their attention is dropped. Of the latent, the mean
becomes the features. The 1x1 convolutions around the latent are merged into their neighbours.
Names are those of latent-diffusion (CompVis) and FLUX (black-forest-labs), or Infinity's.
"""

import collections
import dataclasses
import re
from collections.abc import Iterable

import numpy as np

from infinity_jax.config import TokenizerConfig
from infinity_jax.convert.dimensions import Tensors, read_tokenizer_config
from infinity_jax.convert.plan import Plan
from infinity_jax.errors import UserError
from infinity_jax.weights.weight_files import Index, name_problems

OUTER = 'first_stage_model.'  # prefix of an autoencoder's names in a latent diffusion model
ATTENTION = re.compile(r'(?:encoder|decoder)\.(?:mid\.attn_\d+|(?:down|up)\.\d+\.attn\.\d+)(?=\.)')
QUANT_CONV, POST_QUANT_CONV = 'quant_conv.conv', 'post_quant_conv.conv'
CONV_OUT, CONV_IN = 'encoder.conv_out.conv', 'decoder.conv_in.conv'


@dataclasses.dataclass(frozen=True)
class _Computed:
    """A `LazyTensor` with computed values, which the file does not contain."""

    array: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype:
        return self.array.dtype

    def read(self, index: Index = ()) -> np.ndarray:
        return self.array[index]


def is_continuous(tensors: Tensors) -> bool:
    """Whether a file has a continuous autoencoder, by its names or the latent's channels."""
    if any(re.search(r'\.(conv1|conv_in)\.weight$', name) for name in tensors):
        return True
    names = {_released_name(name): name for name in tensors}
    if f'{QUANT_CONV}.weight' in names or any(map(ATTENTION.match, names)):
        return True
    given_name, taken_name = (names.get(f'{stem}.weight') for stem in (CONV_OUT, CONV_IN))
    if given_name is None or taken_name is None:
        return False
    given, taken = tensors[given_name].shape, tensors[taken_name].shape
    return given[:1] == tuple(2 * n for n in taken[1:2])


def read_continuous(
    tensors: Tensors, **overrides: object
) -> tuple[TokenizerConfig, Tensors, list[str]]:
    """Reads the weights of a continuous autoencoder that a tokenizer can start from.

    Args:
      tensors: its state dict, or that of a whole latent diffusion model.
      overrides: fields of the configuration that shapes cannot show (norm_groups).

    Returns:
      a configuration whose bits are the latent's channels; the tensors of that tokenizer under
      released names; and lines that describe what was dropped or changed.

    Raises:
      UserError: tensors are missing, unknown or misshapen; they are named as in the file.
    """
    if any('.down_blocks.' in name for name in tensors):
        raise UserError(
            'names are those of diffusers (encoder.down_blocks.0.resnets.0.…); wanted the original '
            "ones (encoder.down.0.block.0.…): take the model's file in its authors' format"
        )
    nested = any(name.endswith('.conv1.conv.weight') for name in tensors)
    ours, lines = _networks(tensors)
    lines += _fold_latent(ours, nested)
    config = read_tokenizer_config(ours, **overrides)
    wanted = {_file_name(e.torch, nested): e.shape for e in Plan.of(config).entries}
    problems = name_problems(wanted, {_file_name(n, nested): t.shape for n, t in ours.items()})
    if problems:
        raise UserError('; '.join(problems))
    return config, ours, lines


def _networks(tensors: Tensors) -> tuple[Tensors, list[str]]:
    """Encoder, decoder and latent layers under released names, and lines on what was left out."""
    inner = any(name.startswith(OUTER) for name in tensors)
    ours, attention, others = {}, set(), []
    for name, tensor in tensors.items():
        released = _released_name(name.removeprefix(OUTER))
        found = ATTENTION.match(released)
        wanted = released.startswith(('encoder.', 'decoder.', QUANT_CONV, POST_QUANT_CONV))
        if not wanted or inner and not name.startswith(OUTER):
            others.append(name)
        elif found:
            attention.add(found[0])
        else:
            ours[released] = tensor
    lines = [f'skipped {_counted(others)}'] if others else []
    if attention:
        layers = ', '.join(sorted(attention))
        lines.append(f'dropped the attention, which this tokenizer does not have: {layers}')
    return ours, lines


def _released_name(name: str) -> str:
    """The name in a released tokenizer, in which layers are wrapped once more.

    `conv1.weight` is `conv1.conv.weight` there, and LDM's `downsample.conv.weight` is
    `downsample.conv.conv.weight`. Some files keep the 1x1 convolutions in encoder and decoder.
    """
    name = re.sub(r'^(?:encoder|decoder)\.(?=(?:post_)?quant_conv\.)', '', name)
    if re.search(r'(?<!sample)\.(?:conv|norm)\.\w+$', name):
        return name
    stem, _, leaf = name.rpartition('.')
    kind = 'norm' if stem.rpartition('.')[2].startswith('norm') else 'conv'
    return f'{stem}.{kind}.{leaf}'


def _file_name(released: str, nested: bool) -> str:
    """The name in the file of a released name."""
    return released if nested else re.sub(r'\.(?:conv|norm)(?=\.\w+$)', '', released)


def _counted(names: Iterable[str]) -> str:
    parts = collections.Counter(name.partition('.')[0] for name in names)
    return ', '.join(f'{part} ({count} tensors)' for part, count in parts.items())


def _fold_latent(tensors: Tensors, nested: bool) -> list[str]:
    """Keeps only the mean of the latent and merges the 1x1 convolutions; returns lines about it.

    The 1x1 convolutions are linear, so each is merged into its neighbour, `encoder.conv_out` or
    `decoder.conv_in`. The bias of `post_quant_conv` was added before the padding with zeros. Merged
    into the bias of `decoder.conv_in`, it is exact except for the outermost codes.
    """
    present = [s for s in (QUANT_CONV, POST_QUANT_CONV) if f'{s}.weight' in tensors]
    _check_latent(tensors, present, nested)
    out, into = (tensors[f'{s}.weight'].shape for s in (CONV_OUT, CONV_IN))
    quant, quant_bias = _convolution_1x1(tensors, QUANT_CONV, out[0])
    post, post_bias = _convolution_1x1(tensors, POST_QUANT_CONV, into[1])
    given, channels = len(quant), post.shape[1]
    if given not in (channels, 2 * channels):
        raise UserError(
            f'the encoder gives {given} channels and the decoder takes {channels}; wanted the '
            'same number, or twice as many for mean and log-variance'
        )
    mean, mean_bias = quant[:channels], quant_bias[:channels]
    weight, bias = (tensors[f'{CONV_OUT}.{leaf}'].read() for leaf in ('weight', 'bias'))
    changed = {
        f'{CONV_OUT}.weight': np.einsum('mc,cikl->mikl', mean, weight.astype(np.float64)),
        f'{CONV_OUT}.bias': mean @ bias.astype(np.float64) + mean_bias,
    }
    weight, bias = (tensors[f'{CONV_IN}.{leaf}'].read() for leaf in ('weight', 'bias'))
    changed |= {
        f'{CONV_IN}.weight': np.einsum('ozkl,zm->omkl', weight.astype(np.float64), post),
        f'{CONV_IN}.bias': bias + np.einsum('ozkl,z->o', weight.astype(np.float64), post_bias),
    }
    for name, array in changed.items():
        tensors[name] = _Computed(array.astype(tensors[name].dtype))
    for stem in present:
        del tensors[f'{stem}.weight'], tensors[f'{stem}.bias']
    lines = [f'took the mean, {channels} of {given} channels'] if given > channels else []
    if QUANT_CONV in present:
        lines.append('folded quant_conv into encoder.conv_out')
    if POST_QUANT_CONV in present:
        lines.append(
            'folded post_quant_conv into decoder.conv_in, exact but for its bias at the border'
        )
    return lines


def _check_latent(tensors: Tensors, present: list[str], nested: bool) -> None:
    """Raises `UserError` unless the layers around the latent are complete and fit together."""
    stems = (CONV_OUT, CONV_IN, *present)
    names = [f'{stem}.{leaf}' for stem in stems for leaf in ('weight', 'bias')]
    missing = [_file_name(n, nested) for n in names if n not in tensors]
    if missing:
        raise UserError(f'missing {", ".join(missing)}; wanted the whole autoencoder')
    shapes = {n: tuple(tensors[n].shape) for n in names}
    flat = [n for n in names if n.endswith('weight') and len(shapes[n]) != 4]
    if flat:
        name = _file_name(flat[0], nested)
        raise UserError(f'{name} has shape {shapes[flat[0]]}, wanted that of a 2-D convolution')
    sizes = {stem: shapes[f'{stem}.weight'][:2] for stem in stems}
    wanted: dict[str, tuple[int, ...]] = {f'{stem}.bias': (sizes[stem][0],) for stem in stems}
    if QUANT_CONV in present:
        wanted[f'{QUANT_CONV}.weight'] = (sizes[QUANT_CONV][0], sizes[CONV_OUT][0], 1, 1)
    if POST_QUANT_CONV in present:
        wanted[f'{POST_QUANT_CONV}.weight'] = (sizes[CONV_IN][1], sizes[POST_QUANT_CONV][1], 1, 1)
    problems = [
        f'{_file_name(name, nested)} has shape {shapes[name]}, wanted {shape}'
        for name, shape in wanted.items()
        if shapes[name] != shape
    ]
    if problems:
        raise UserError('; '.join(problems))


def _convolution_1x1(tensors: Tensors, stem: str, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Matrix (out, in) and bias of a 1x1 convolution, float64; the identity if absent."""
    if f'{stem}.weight' not in tensors:
        return np.eye(channels), np.zeros(channels)
    weight, bias = (tensors[f'{stem}.{leaf}'].read() for leaf in ('weight', 'bias'))
    return weight[:, :, 0, 0].astype(np.float64), bias.astype(np.float64)
