"""What a configuration leaves to the model folder that a run starts from, and what it must name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infinity_jax.config import TransformerConfig, UserError
from infinity_jax.scales import BUDGET_OF_EDGE
from infinity_jax.weights.model_folder import read_description


def with_model_fields(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields of a t2i run; one whose `transformer` names no depth has those of `init_from`.

    Dimensions, tokenizer and text encoder are then that folder's. What `fields` do give and is not
    None, such as another drop_path, stays.

    Raises:
      UserError: `init_from` is empty or holds no transformer.
    """
    given = {n: v for n, v in (fields.get('transformer') or {}).items() if v is not None}
    if 'depth' in given:
        return fields
    folder = fields.get('init_from') or ''
    if not folder:
        raise UserError(
            'config.init_from is empty: name the model folder to start from, or set '
            'config.transformer.depth, width and num_heads for a new model'
        )
    folder, described = read_description(folder)
    if 'transformer' not in described:
        raise UserError(f'config.init_from {folder}: holds no transformer; name another folder')
    text = dict(fields.get('text') or {})
    text['folder'] = text.get('folder') or str(folder / 'text_encoder')
    return {
        **fields,
        'transformer': {**described['transformer'], **given},
        'tokenizer': fields.get('tokenizer') or str(folder),
        'text': text,
    }


def check_named(
    picture_size: int, transformer: TransformerConfig, *, tokenizer: bool, text_encoder: bool
) -> None:
    """Raises `UserError` where a model of the paper's kind would get the demo's parts.

    Args:
      picture_size: of the run's data, in pixels; the demo's parts are for smaller ones than the
        paper's.
      transformer: what the parts must fit.
      tokenizer, text_encoder: whether the configuration names one.
    """
    if picture_size not in BUDGET_OF_EDGE:
        return
    missing = []
    if not tokenizer:
        missing.append(
            f'config.tokenizer is empty: name a model folder with a tokenizer of '
            f'{transformer.bits} bits (infinity-jax convert from-torch, or configs/tokenizer.py)'
        )
    if not text_encoder:
        missing.append(
            'config.text.folder is empty: name a Hugging Face folder of a T5 encoder of width '
            f'{transformer.text_channels}; Flan-T5-XL has 2048'
        )
    if missing:
        raise UserError('; '.join(missing))


def tokenizer_is_folded(folder: str | Path) -> bool:
    """Whether the schedule in a folder has token grids of half the code grids (patchify)."""
    described = read_description(folder)[1]
    return bool(described.get('transformer', {}).get('spatial_patchify', False))
