"""Infers a model's dimensions from the names and shapes of a released state dict."""

import collections
import dataclasses
import math
import re
from collections.abc import Iterable
from typing import Any

from infinity_jax.config import TokenizerConfig, TransformerConfig
from infinity_jax.convert.names import Naming
from infinity_jax.errors import UserError
from infinity_jax.parsing import from_mapping
from infinity_jax.weights.weight_files import LazyTensor

Tensors = dict[str, LazyTensor]

BLOCK_NAME = re.compile(r'(?:block_chunks\.(\d+)\.module|blocks)\.(\d+)\.')


def _vote(what: str, seen: Iterable[int | None], default: int | None = None) -> int:
    """The value that most tensors imply, so that a single misshapen tensor is reported as such.

    If no tensor implies one, returns the default; the missing tensors are reported later.
    """
    values = [value for value in seen if value is not None]
    if values:
        return collections.Counter(values).most_common(1)[0][0]
    if default is None:
        raise UserError(f'cannot infer {what}: all tensors that show it are missing')
    return default


class _Shapes:
    """Looks up sizes in name -> tensor; None if the tensor or the axis is missing."""

    def __init__(self, tensors: Tensors):
        self.tensors = tensors

    def size(self, name: str, axis: int, divisor: int = 1) -> int | None:
        shape = self.tensors[name].shape if name in self.tensors else ()
        if not -len(shape) <= axis < len(shape) or shape[axis] % divisor:
            return None
        return shape[axis] // divisor

    def matching(self, pattern: str, axis: int) -> list[int | None]:
        return [self.size(name, axis) for name in self.tensors if re.fullmatch(pattern, name)]


def read_naming(tensors: Tensors) -> tuple[Naming, int]:
    """The naming scheme of a transformer's blocks, and their number."""
    blocks = {match.groups() for match in map(BLOCK_NAME.match, tensors) if match}
    if not blocks:
        names = ', '.join(list(tensors)[:3])
        raise UserError(
            f'no transformer blocks among the names, such as {names}; is this a transformer file?'
        )
    chunks = 1 + max(int(chunk or 0) for chunk, _ in blocks)
    depth = chunks * (1 + max(int(index) for _, index in blocks))
    scales = [t.shape for n, t in tensors.items() if n.endswith('.sa.scale_mul_1H11')]
    later = [s for s in scales if len(s) == 4 and s[1] == 1 and s[2] > 1]
    return Naming(chunks, 2 if 2 * len(later) > len(scales) else 1), depth


def read_transformer_config(
    tensors: Tensors, tokenizer_bits: int | None = None, **overrides: Any
) -> tuple[TransformerConfig, Naming]:
    """Infers a transformer's configuration from the shapes.

    Args:
      tensors: the state dict.
      tokenizer_bits: d of its tokenizer, which alone shows whether a token is one code or 2×2
        codes; None assumes one code.
      overrides: fields that replace inferred ones.

    Returns:
      the configuration and the naming scheme of the blocks.
    """
    s = _Shapes(tensors)
    naming, depth = read_naming(tensors)
    width_of = (
        ('pos_start', 2), ('lvl_embed.weight', 1), ('word_embed.weight', 0),
        ('word_embed.bias', 0), ('head.weight', 1), ('shared_ada_lin.1.weight', 1),
    )  # fmt: skip
    width = _vote('the width', (s.size(*at) for at in width_of))
    text_of = (
        ('text_norm.weight', 0), ('cfg_uncond', 1), ('text_proj_for_ca.0.weight', 1),
        ('text_proj_for_sos.ca.mat_kv.weight', 1),
    )  # fmt: skip
    bits_of = (('word_embed.weight', 1, 1), ('head.weight', 0, 2), ('head.bias', 0, 2))
    seen_bits = [s.size(*at) for at in bits_of]
    # One of several wrong shapes must not outvote the one that fits the tokenizer.
    fitting = [n for n in seen_bits if n and n in (tokenizer_bits, 4 * (tokenizer_bits or 0))]
    token_bits = _vote('the bits of a token', fitting or seen_bits)
    hidden = _vote(
        'the feed-forward width',
        s.matching(r'.*\.ffn\.fc1\.weight', 0) + s.matching(r'.*\.ffn\.fc2\.weight', 1),
    )
    patchify = tokenizer_bits is not None and token_bits == 4 * tokenizer_bits
    if tokenizer_bits is not None and not patchify and token_bits != tokenizer_bits:
        raise UserError(
            f'a token of this transformer has {token_bits} bits, a code of this tokenizer '
            f'{tokenizer_bits}: wanted the same number, or 4 times it with spatial patchify; '
            'give the tokenizer that the transformer was trained with'
        )
    config = TransformerConfig(
        depth=depth,
        width=width,
        num_heads=_vote('the heads', s.matching(r'.*\.scale_mul_1H11', naming.scale_axis)),
        bits=token_bits // 4 if patchify else token_bits,
        text_channels=_vote('the text channels', (s.size(*at) for at in text_of)),
        text_length=_vote('the text length', [s.size('cfg_uncond', 0)], default=512),
        max_scales=_vote('the scale embeddings', [s.size('lvl_embed.weight', 0)], default=15),
        spatial_patchify=patchify,
    )
    if config.hidden_width != hidden:
        config = dataclasses.replace(config, mlp_ratio=hidden / width)
    fields = dataclasses.asdict(config) | overrides
    return from_mapping(TransformerConfig, fields, 'transformer'), naming


def read_tokenizer_config(tensors: Tensors, **overrides: Any) -> TokenizerConfig:
    """Infers a tokenizer's configuration from the shapes.

    Args:
      tensors: the state dict.
      overrides: fields that shapes cannot show (norm_groups).
    """
    s = _Shapes(tensors)

    def highest(pattern: str) -> list[int]:
        found = (re.match(pattern, name) for name in tensors)
        return [max((int(m.group(1)) for m in found if m), default=-1)]

    levels = 1 + max(highest(r'encoder\.down\.(\d+)\.') + highest(r'decoder\.up\.(\d+)\.'))
    if not levels:
        names = ', '.join(list(tensors)[:3])
        raise UserError(
            f'no encoder or decoder levels among the names, such as {names}; is this a tokenizer '
            'file?'
        )
    widths = [
        _vote(
            f'the width of level {i}',
            s.matching(rf'(encoder\.down|decoder\.up)\.{i}\.block\.\d+\.conv2\.conv\.weight', 0),
        )
        for i in range(levels)
    ]
    bits_of = (
        ('encoder.conv_out.conv.weight', 0), ('encoder.conv_out.conv.bias', 0),
        ('decoder.conv_in.conv.weight', 1),
    )  # fmt: skip
    blocks = highest(r'encoder\.down\.\d+\.block\.(\d+)\.')[0] + 1
    decoder_blocks = highest(r'decoder\.up\.\d+\.block\.(\d+)\.')[0] + 1
    folded = _vote('the input channels', [s.size('encoder.conv_in.conv.weight', 1, 3), 1])
    base = math.gcd(*widths)
    fields = {
        'bits': _vote('the bits of a code', (s.size(*at) for at in bits_of)),
        'base_channels': base,
        'channel_multipliers': tuple(width // base for width in widths),
        'residual_blocks': blocks,
        'decoder_blocks': 0 if decoder_blocks == blocks + 1 else decoder_blocks,
        'unshuffle': math.isqrt(folded),
        'kernel_size': _vote(
            'the kernel size', [s.size('encoder.conv_in.conv.weight', 3)], default=3
        ),
    }
    return from_mapping(TokenizerConfig, {**fields, **overrides}, 'tokenizer')
