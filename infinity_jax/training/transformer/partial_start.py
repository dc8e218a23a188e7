"""Weights of a model of other dimensions as a start: what fits is kept, the rest is new.

Another tokenizer gives another number of bits per code, or the same number with another meaning;
the word embedding and the head then start from random values, as the authors of Infinity advise.
Another text length, number of scales, depth or text encoder changes a few weights in the same way.
Width, heads and feed-forward width are in every matrix, so they cannot change.
"""

from collections.abc import Mapping
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from infinity_jax.config import TransformerConfig
from infinity_jax.errors import UserError

# Tables of one row per position or scale: the rows that both models have are kept.
TABLES = ('unconditional_text', 'level_embed')
# Parts whose shapes contain bits, text channels, or the rows of a table.
PARTS = ('word_embed', 'head', 'text_norm', 'text_pool', 'text_project_in', *TABLES)
BLOCKS = 'blocks'
# Of these the residual branches of a block are made: with zeros a new block is the identity.
OUTPUTS = ('self_attention.out', 'cross_attention.out', 'ffn.down')
# Fields that may differ, and the parts that they shape.
FIELDS = {
    'bits': ('word_embed', 'head'),
    'spatial_patchify': ('word_embed', 'head'),
    'classifier': ('head',),
    'text_channels': ('text_norm', 'text_pool', 'text_project_in', 'unconditional_text'),
    'text_length': ('unconditional_text',),
    'max_scales': ('level_embed',),
    'depth': (BLOCKS,),
}
FIXED = ('width', 'num_heads', 'mlp_ratio')

Shapes = Mapping[str, tuple[int, ...]]  # by dotted path


def check_parts(parts: tuple[str, ...]) -> None:
    """Raises `UserError` for a name in `config.new_parts` that is no part."""
    for part in parts:
        if part not in PARTS:
            raise UserError(
                f'config field new_parts names {part!r}; wanted some of {", ".join(PARTS)}'
            )


def new_parts(given: Shapes, wanted: Shapes, asked: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The parts that start with new weights, wholly or in some rows; () if all is kept.

    Args:
      given, wanted: shapes of the model to start from, and of the run.
      asked: parts that are new even where they fit.

    Raises:
      UserError: the two differ in a part that cannot be new, see `FIXED`.
    """
    found = dict.fromkeys(asked)
    for name in sorted({*given, *wanted}):
        if given.get(name) == wanted.get(name):
            continue
        part = name.split('.')[0]
        another_depth = name in given and name in wanted and given[name][1:] == wanted[name][1:]
        if part not in PARTS and not (part == BLOCKS and another_depth):
            raise UserError(
                f'{name} is {given.get(name, "absent")}, but the config wants '
                f"{wanted.get(name, 'none')}; use that model's own "
                f'{", ".join(f"transformer.{field}" for field in FIXED)}'
            )
        found[part] = None
    return tuple(found)


def merged(given: Any, fresh: Any, parts: tuple[str, ...], asked: tuple[str, ...] = ()) -> Any:
    """The weights of `given` that fit, and those of `fresh` for the rest; pure.

    Args:
      given, fresh: trees of the model to start from, and of random weights of the run.
      parts: of `new_parts`.
      asked: of these no row is kept.
    """
    given, fresh = flatten_dict(given, sep='.'), flatten_dict(fresh, sep='.')
    result = {}
    for name, new in fresh.items():
        part, old = name.split('.')[0], given.get(name)
        if part not in parts:
            result[name] = old
        elif part not in asked and part in (*TABLES, BLOCKS) and old.shape[1:] == new.shape[1:]:
            rest = new[len(old) :]
            if part == BLOCKS and any(f'.{output}.' in name for output in OUTPUTS):
                rest = jax.numpy.zeros_like(rest)
            result[name] = jax.numpy.concatenate([old[: len(new)], rest])
        else:
            result[name] = new
    return unflatten_dict(result, sep='.')


def described(
    old: TransformerConfig, new: TransformerConfig, asked: tuple[str, ...] = ()
) -> list[str]:
    """One line per field that differs, with what is kept and what is new."""
    lines = []
    for field, parts in FIELDS.items():
        before, now = getattr(old, field), getattr(new, field)
        if before == now:
            continue
        what = ', '.join(parts) + ' new'
        if field == 'depth':
            what = f'the first {min(before, now)} blocks are kept'
            what += '' if now < before else ', the others start as the identity'
        elif field in ('text_length', 'max_scales') and not {*parts} & {*asked}:
            what = f'the first {min(before, now)} rows of {parts[0]} are kept'
            what += '' if now < before else ', the others new'
        lines.append(f'transformer.{field} is {now}, there {before}: {what}')
    if asked:
        lines.append(f'config.new_parts: {", ".join(asked)} new')
    return lines
