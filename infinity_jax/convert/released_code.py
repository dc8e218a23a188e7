"""The sizes that the released PyTorch code takes, and what an export adds next to its files.

`infinity_jax.json` holds what the names and shapes of the torch files do not show. `from_torch`
reads it, so that export and import give the same model.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from infinity_jax.config import (
    ModelConfigs,
    TokenizerConfig,
    TransformerConfig,
    pixels_per_token,
)
from infinity_jax.errors import UserError
from infinity_jax.parsing import from_mapping
from infinity_jax.runtime.remote import any_path
from infinity_jax.runtime.remote_copy import local_copy
from infinity_jax.scales import STRIDE, ScaleSchedule
from infinity_jax.weights.weight_files import read_json

FILE_NAME = 'infinity_jax.json'
FORMAT = 'infinity_jax export'
# Fields that no shape shows.
HIDDEN_FIELDS = {'transformer': ('drop_path', 'dtype'), 'tokenizer': ('norm_groups',)}
SCALES = 15  # rows of the scale embedding
DECODER_BLOCKS = 3  # per level
# (depth, width) -> chunks of blocks in the released code's scripts; all other sizes have 4.
CHUNKS = {(32, 2048): 8, (40, 3584): 8}


def released_chunks(config: TransformerConfig) -> int:
    """Chunks in the names of the blocks: a divisor of the depth, above 1 where there is one.

    The released code generates with more than one chunk only. With another count than its own it
    ignores the names that differ, and these blocks keep random weights.
    """
    wanted = CHUNKS.get((config.depth, config.width), 4)
    if config.depth % wanted == 0:
        return wanted
    return next((n for n in range(2, config.depth + 1) if config.depth % n == 0), 1)


def check_classifier(name: str, configs: ModelConfigs) -> None:
    """Raises `UserError` if the head of a model has no place in the released layout.

    Args:
      name: of the folder, for the message.
      configs: its configurations.
    """
    transformer = configs.transformer
    if transformer is not None and transformer.classifier != 'bits':
        raise UserError(
            f'{name}: transformer.classifier is {transformer.classifier!r}, which the released '
            "code lacks; only a model with 'bits' can be exported"
        )


def misfits(configs: ModelConfigs) -> list[str]:
    """Reasons why the released code cannot load a model without changes; [] if it can."""
    found: list[tuple[str, Any, Any]] = []
    transformer, tokenizer = configs.transformer, configs.tokenizer
    if transformer is not None:
        found.append(('transformer.max_scales', transformer.max_scales, SCALES))
    if tokenizer is not None:
        found += [
            ('tokenizer.norm_groups', tokenizer.norm_groups, TokenizerConfig.norm_groups),
            ('decoder blocks per level', tokenizer.decoder_depth, DECODER_BLOCKS),
            ('tokenizer.unshuffle', tokenizer.unshuffle, 1),
            ('tokenizer.kernel_size', tokenizer.kernel_size, 3),
        ]
    if transformer is not None and tokenizer is not None:
        found.append(('pixels per token', pixels_per_token(transformer, tokenizer), STRIDE))
    lines = [f'{name} is {seen}, there {fixed}' for name, seen, fixed in found if seen != fixed]
    schedule = configs.schedule
    if schedule and schedule != ScaleSchedule.of_released_code(schedule.grids):
        lines.append('the grids are not those of a released ratio')
    return lines


@dataclasses.dataclass(frozen=True)
class Hidden:
    """What the torch files of an export do not show.

    Attributes:
      fields: part -> field -> value.
      schedule: the token grids.
      token_stride: pixels per transformer token along an edge; None: unknown.
      trained_with: see `ModelConfigs`.
    """

    fields: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    schedule: ScaleSchedule | None = None
    token_stride: int | None = None
    trained_with: str = ''


def write_hidden(folder: Path, configs: ModelConfigs) -> None:
    """Writes `infinity_jax.json` next to exported files."""
    described: dict[str, Any] = {'format': FORMAT, 'version': 1}
    parts = {'transformer': configs.transformer, 'tokenizer': configs.tokenizer}
    for part, config in parts.items():
        if config is not None:
            described[part] = {n: getattr(config, n) for n in HIDDEN_FIELDS[part]}
    if configs.schedule is not None:
        described['schedule'] = dataclasses.asdict(configs.schedule)
    if configs.transformer is not None and configs.tokenizer is not None:
        described['token_stride'] = pixels_per_token(configs.transformer, configs.tokenizer)
    if configs.trained_with:
        described['trained_with'] = configs.trained_with
    text = json.dumps(described, indent=2)
    (folder / FILE_NAME).write_text(text + '\n', encoding='utf-8')


def read_hidden(*paths: str | Path | None) -> Hidden:
    """What an export wrote next to these files, of all parts; empty if it wrote nothing.

    Args:
      paths: torch files or folders, in the order of the parts in `HIDDEN_FIELDS`; None: not given.

    Raises:
      UserError: `infinity_jax.json` is damaged.
    """
    fields: dict[str, dict[str, Any]] = {}
    others: dict[str, Any] = {}
    for part, path in zip(HIDDEN_FIELDS, paths, strict=True):
        if path is None:
            continue
        path = any_path(path)
        file = (path if path.is_dir() else path.parent) / FILE_NAME
        if not file.is_file():
            continue
        described = read_json(local_copy(file))
        given = described.get(part, {})
        if described.get('format') != FORMAT or not isinstance(given, dict):
            raise UserError(f'{file}: not written by an export; delete it, then convert again')
        fields[part] = {n: v for n, v in given.items() if n in HIDDEN_FIELDS[part]}
        if part == 'transformer':
            others = {n: described[n] for n in ('token_stride', 'trained_with') if n in described}
            if 'schedule' in described:
                stored = described['schedule']
                others['schedule'] = from_mapping(ScaleSchedule, stored, 'schedule', stored=True)
    return Hidden(fields, **others)
