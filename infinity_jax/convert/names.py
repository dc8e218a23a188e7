"""The table of released PyTorch names and our paths, for import and export.

A rule pairs a torch name with our dotted path and has the transform of the array. `{block}` is one
transformer block, whose weights we stack over the layers; `{i}` and `{j}` are numbers that appear
on both sides. Buffers are constants of the torch files that we do not store: they are skipped on
import and computed on export.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Transform:
    """The change of an array on import and its inverse on export, both exact."""

    to_ours: Callable[[np.ndarray], np.ndarray]
    to_torch: Callable[[np.ndarray], np.ndarray]


def _drop_leading(ones: int) -> Transform:
    """Drops leading axes of length one, which torch has for broadcasting."""
    return Transform(
        lambda a: a.reshape(a.shape[ones:]) if a.shape[:ones] == (1,) * ones else a,
        lambda a: a.reshape((1,) * ones + a.shape),
    )


def _drop_around_heads(axis: int) -> Transform:
    """(1, N, 1, 1), or (1, 1, N, 1) for the flash kernel of the released code, and our (N,)."""
    before, after = axis, 3 - axis
    wanted = lambda a: a.shape == (1,) * before + (a.size,) + (1,) * after  # noqa: E731
    return Transform(
        lambda a: a.reshape(-1) if wanted(a) else a,
        lambda a: a.reshape((1,) * before + a.shape + (1,) * after),
    )


KEEP = Transform(lambda a: a, lambda a: a)
LINEAR = Transform(np.transpose, np.transpose)  # (out, in) and (in, out)
CONV = Transform(lambda a: a.transpose(2, 3, 1, 0), lambda a: a.transpose(3, 2, 0, 1))  # OIHW, HWIO
HEAD_SCALE = {axis: _drop_around_heads(axis) for axis in (1, 2)}


@dataclasses.dataclass(frozen=True)
class Rule:
    """One row: torch's name pattern, our path pattern, and the transform between them."""

    torch: str
    ours: str
    transform: Transform | str = KEEP  # 'head scale': by the file's layout


@dataclasses.dataclass(frozen=True)
class Buffer:
    """A constant in the torch file, computed from a weight in torch's layout."""

    torch: str
    weight: str
    make: Callable[[np.ndarray], np.ndarray]


def _linear(torch: str, ours: str, bias: bool = True) -> tuple[Rule, ...]:
    weight = Rule(f'{torch}.weight', f'{ours}.kernel', LINEAR)
    return (weight, Rule(f'{torch}.bias', f'{ours}.bias')) if bias else (weight,)


def _conv(torch: str, ours: str) -> tuple[Rule, ...]:
    weight = Rule(f'{torch}.conv.weight', f'{ours}.kernel', CONV)
    return weight, Rule(f'{torch}.conv.bias', f'{ours}.bias')


def _norm(torch: str, ours: str) -> tuple[Rule, ...]:
    return Rule(f'{torch}.weight', f'{ours}.scale'), Rule(f'{torch}.bias', f'{ours}.bias')


def _residual(torch: str, ours: str) -> tuple[Rule, ...]:
    return (
        *_norm(f'{torch}.norm1.norm', f'{ours}.norm1'),
        *_conv(f'{torch}.conv1', f'{ours}.conv1'),
        *_norm(f'{torch}.norm2.norm', f'{ours}.norm2'),
        *_conv(f'{torch}.conv2', f'{ours}.conv2'),
        *_conv(f'{torch}.nin_shortcut', f'{ours}.shortcut'),
    )


TRANSFORMER = (
    Rule('cfg_uncond', 'unconditional_text'),
    Rule('pos_start', 'first_token', _drop_leading(2)),
    Rule('text_norm.weight', 'text_norm.scale'),
    Rule('text_proj_for_sos.ca.mat_q', 'text_pool.query', _drop_leading(1)),
    Rule('text_proj_for_sos.ca.v_bias', 'text_pool.value_bias'),
    *_linear('text_proj_for_sos.ca.mat_kv', 'text_pool.key_value', bias=False),
    *_linear('text_proj_for_sos.ca.proj', 'text_pool.out'),
    *_linear('text_proj_for_ca.0', 'text_project_in'),
    *_linear('text_proj_for_ca.2', 'text_project_out'),
    Rule('lvl_embed.weight', 'level_embed'),
    *_linear('word_embed', 'word_embed'),
    *_linear('shared_ada_lin.1', 'shared_modulation'),
    *_linear('head_nm.ada_lin.1', 'head_modulation'),
    *_linear('head', 'head'),
    Rule('{block}.ada_gss', 'blocks.modulation_table', _drop_leading(2)),
    Rule('{block}.sa.scale_mul_1H11', 'blocks.self_attention.log_scale', 'head scale'),
    Rule('{block}.sa.q_bias', 'blocks.self_attention.query_bias'),
    Rule('{block}.sa.v_bias', 'blocks.self_attention.value_bias'),
    *_linear('{block}.sa.mat_qkv', 'blocks.self_attention.qkv', bias=False),
    *_linear('{block}.sa.proj', 'blocks.self_attention.out'),
    *_linear('{block}.ca.mat_q', 'blocks.cross_attention.query'),
    Rule('{block}.ca.v_bias', 'blocks.cross_attention.value_bias'),
    *_linear('{block}.ca.mat_kv', 'blocks.cross_attention.key_value', bias=False),
    *_linear('{block}.ca.proj', 'blocks.cross_attention.out'),
    *_linear('{block}.ffn.fc1', 'blocks.ffn.up'),
    *_linear('{block}.ffn.fc2', 'blocks.ffn.down'),
    *_norm('{block}.ca_norm', 'blocks.cross_norm'),
)
TRANSFORMER_BUFFERS = tuple(
    Buffer(f'{attention}.zero_k_bias', f'{attention}.v_bias', np.zeros_like)
    for attention in ('text_proj_for_sos.ca', '{block}.sa', '{block}.ca')
)
# Leftovers of training that the released loader drops as well.
TRANSFORMER_IGNORED = (
    'lvl_1L',
    'attn_bias_for_masking',
    'Infinity_visible_kvlen',
    'Infinity_invisible_qlen',
)

TOKENIZER = (
    *(
        rule
        for net in ('encoder', 'decoder')
        for rule in (
            *_conv(f'{net}.conv_in', f'{net}.conv_in'),
            *_residual(f'{net}.mid.block_{{i}}', f'{net}.mid_{{i}}'),
            *_norm(f'{net}.norm_out.norm', f'{net}.norm_out'),
            *_conv(f'{net}.conv_out', f'{net}.conv_out'),
        )
    ),
    *_residual('encoder.down.{i}.block.{j}', 'encoder.down_{i}.block_{j}'),
    *_conv('encoder.down.{i}.downsample.conv', 'encoder.down_{i}.downsample'),
    *_residual('decoder.up.{i}.block.{j}', 'decoder.up_{i}.block_{j}'),
    *_conv('decoder.up.{i}.upsample.conv', 'decoder.up_{i}.upsample'),
)


def bit_values(conv_out_bias: np.ndarray) -> np.ndarray:
    """The place value of each bit, highest first, as int64 overflows in torch from the 64th on."""
    exponents = np.arange(conv_out_bias.shape[0] - 1, -1, -1, dtype=np.uint64)
    small = np.left_shift(np.uint64(1), np.minimum(exponents, np.uint64(63)))
    return np.where(exponents < 64, small, np.uint64(0)).astype(np.int64)


TOKENIZER_BUFFERS = tuple(
    Buffer(f'{name}.lfq.mask', 'encoder.conv_out.conv.bias', bit_values)
    for name in ('quantizer', 'quantize')  # one object under two names
)


@dataclasses.dataclass(frozen=True)
class Naming:
    """Differences between files of the same model, stored so that an export has the same layout.

    Attributes:
      chunks: blocks are `block_chunks.{chunk}.module.{i}`, or `blocks.{i}` if there is one chunk.
      scale_axis: axis of the heads, 1 or 2, in the four axes of `scale_mul_1H11`.
    """

    chunks: int = 1
    scale_axis: int = 1

    def block(self, layer: int, depth: int) -> str:
        """The torch name of a block."""
        if self.chunks == 1:
            return f'blocks.{layer}'
        chunk, index = divmod(layer, depth // self.chunks)
        return f'block_chunks.{chunk}.module.{index}'


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor of a given model: its torch name and shape, and our path."""

    torch: str
    shape: tuple[int, ...]
    ours: str
    layer: int | None  # index into our stacked array
    transform: Transform


def entries(
    table: tuple[Rule, ...],
    our_shapes: Mapping[str, tuple[int, ...]],
    naming: Naming = Naming(),
) -> list[Entry]:
    """Resolves the table for a model whose dotted paths and shapes are `our_shapes`.

    Raises:
      KeyError: no rule covers a path, which is an error in the table.
    """
    found = []
    for ours, shape in our_shapes.items():
        rule, numbers = _rule_for(table, ours)
        transform = rule.transform
        if isinstance(transform, str):
            transform = HEAD_SCALE[naming.scale_axis]
        if '{block}' not in rule.torch:
            torch_shape = transform.to_torch(_blank(shape)).shape
            found.append(Entry(rule.torch.format(**numbers), torch_shape, ours, None, transform))
            continue
        depth = shape[0]
        torch_shape = transform.to_torch(_blank(shape[1:])).shape
        for layer in range(depth):
            name = rule.torch.format(block=naming.block(layer, depth), **numbers)
            found.append(Entry(name, torch_shape, ours, layer, transform))
    return found


def buffer_names(
    buffers: tuple[Buffer, ...], depth: int, naming: Naming = Naming()
) -> dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]]:
    """Buffer name -> (name of the weight that it is computed from, function)."""
    names = {}
    for buffer in buffers:
        for layer in range(depth if '{block}' in buffer.torch else 1):
            block = naming.block(layer, max(depth, 1))
            names[buffer.torch.format(block=block)] = (
                buffer.weight.format(block=block),
                buffer.make,
            )
    return names


def _blank(shape: tuple[int, ...]) -> np.ndarray:
    """An array without memory, to find the shape that a transform gives."""
    return np.broadcast_to(np.int8(0), shape)


def _rule_for(table: tuple[Rule, ...], path: str) -> tuple[Rule, dict[str, Any]]:
    for rule in table:
        pattern = re.escape(rule.ours).replace(r'\{', '{').replace(r'\}', '}')
        match = re.fullmatch(re.sub(r'\{(\w)\}', r'(?P<\1>\\d+)', pattern), path)
        if match:
            return rule, match.groupdict()
    raise KeyError(f'no rule for {path}')
