"""Reference folders for `check`, and the distance between arrays."""

import dataclasses
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from infinity_jax.config import ModelConfigs, required
from infinity_jax.convert.plan import load_torch_pair
from infinity_jax.errors import UserError
from infinity_jax.inference.scale_steps import Text
from infinity_jax.scales import RATIOS, ScaleSchedule, nearest_ratio
from infinity_jax.weights.model_folder import LoadedModel
from infinity_jax.weights.weight_files import read_json

MAX_ERROR = 2e-5  # max|a−b| / max|b|


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table: a stage and its distance from the reference."""

    stage: str
    error: float | None = None  # max|a−b| / max|b|
    wrong_bits: int | None = None
    bits: int = 0
    margin: float = 0.0  # largest |l₁ − l₀| or residual among the wrong bits
    grey_levels: int | None = None  # largest difference of an 8-bit image
    skipped: str = ''  # why the stage was not compared
    exact: tuple[float, float] | None = None  # errors of ours and of the reference against float64
    limit: float = MAX_ERROR


class ReferenceArrays(dict[str, np.ndarray]):
    """Arrays by name; a missing one is a `UserError`."""

    def __missing__(self, name: str):
        raise UserError(f'arrays.npz lacks {name}, which the checks start from; copy it again')


@dataclasses.dataclass
class Reference:
    """A reference folder: arrays, meta.json, the imported model and the schedule of the image."""

    arrays: ReferenceArrays
    meta: dict[str, Any]
    loaded: LoadedModel
    schedule: ScaleSchedule

    @property
    def code_grids(self) -> tuple[tuple[int, int], ...]:
        return self.schedule.code_grids(self.loaded.configs.spatial_patchify)

    def features(self, name: str) -> np.ndarray:
        """(B, C, h, w) or (B, C, 1, h, w) as (B, h, w, C)."""
        array = self.arrays[name]
        return np.moveaxis(array.reshape(*array.shape[:2], *array.shape[-2:]), 1, -1)

    def scales(self, prefix: str) -> list[np.ndarray] | None:
        """Bits or flips of all scales, (B, h, w, d) bool; None if the first is missing."""
        if f'{prefix}_00' not in self.arrays:
            return None
        names = sorted(n for n in self.arrays if n.startswith(f'{prefix}_'))
        return [self.arrays[n][:, 0].astype(bool) for n in names if n[len(prefix) + 1 :].isdigit()]

    def text(self, prefix: str, length: int) -> Text:
        """The concatenated captions' features, split and padded to `length`."""
        lengths = self.arrays[f'{prefix}_lens'].astype(np.int32)
        parts = np.split(self.arrays[f'{prefix}_features'], np.cumsum(lengths)[:-1])
        padded = [np.pad(part, ((0, length - len(part)), (0, 0))) for part in parts]
        return Text(jnp.asarray(np.stack(padded)), jnp.asarray(lengths))

    def thin_image(self, pixels: np.ndarray) -> np.ndarray:
        """Every n-th row and column, if the folder has only those."""
        stride = self.meta.get('picture_stride', 1)
        return pixels[:, ::stride, ::stride]

    def thin_tokens(self, x_BLD: np.ndarray) -> np.ndarray:
        """Every n-th token, if the folder has only those."""
        return x_BLD[:, :: self.meta.get('token_stride', 1)]


def reference_schedule(meta: dict[str, Any]) -> ScaleSchedule:
    """The grids of the image; RoPE positions of released grids refer to the 13-scale one."""
    grids = tuple((h, w) for h, w in meta['schedule'])
    full = RATIOS[nearest_ratio(meta['h_div_w'])]
    if full[: len(grids)] == grids:
        return ScaleSchedule(grids, full[-1])
    return ScaleSchedule.free(grids)


def relative_error(ours: Any, theirs: np.ndarray) -> float:
    """max|a−b| / max|b| over finite elements of the reference; top-k makes others −inf."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if ours.shape != theirs.shape:
        return np.inf
    finite = np.isfinite(theirs)
    return float(np.abs(ours - theirs)[finite].max() / np.abs(theirs[finite]).max())


def bit_row(
    stage: str,
    ours: Sequence[Any],
    theirs: Sequence[np.ndarray],
    margins: Sequence[Any],
    error: float | None = None,
) -> Row:
    """Counts wrong bits over all scales and the largest margin among them."""
    total, wrong, largest = 0, 0, 0.0
    for a, b, margin in zip(ours, theirs, margins, strict=True):
        differs = np.asarray(a).astype(bool) != b.astype(bool)
        total, wrong = total + differs.size, wrong + int(differs.sum())
        if differs.any():
            largest = max(largest, float(np.abs(np.asarray(margin))[differs].max()))
    return Row(stage, error, wrong, total, largest)


def load_arrays(folder: Path) -> ReferenceArrays:
    """Reads `arrays.npz` of a reference folder."""
    try:
        with np.load(folder / 'arrays.npz') as stored:
            return ReferenceArrays({name: stored[name] for name in stored.files})
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f'{folder}/arrays.npz: not readable ({error}); copy it again') from None


def load_reference(folder: str | Path) -> Reference:
    """Reads a reference folder of a model; its weights in any format, computed in float32."""
    folder = Path(folder)
    meta = read_json(folder / 'meta.json')
    loaded = load_torch_pair(_weights(folder, 'infinity'), _weights(folder, 'vae'))
    transformer = dataclasses.replace(
        required(loaded.configs.transformer, 'transformer'), dtype='float32'
    )
    configs = dataclasses.replace(loaded.configs, transformer=transformer)
    loaded = dataclasses.replace(loaded, configs=configs)
    _compare_dimensions(folder, meta, configs)
    return Reference(load_arrays(folder), meta, loaded, reference_schedule(meta))


def _weights(folder: Path, stem: str) -> Path:
    """The only weight file or folder of shards whose name starts with `stem`."""
    found = [
        p
        for p in sorted(folder.glob(f'{stem}*'))
        if p.is_dir() or p.suffix in ('.pth', '.pt', '.safetensors')
    ]
    if len(found) != 1:
        names = ', '.join(p.name for p in found) or 'nothing'
        raise UserError(
            f'{folder}: has {names} for {stem}*; wanted one .pth, .safetensors or folder of shards'
        )
    return found[0]


def _compare_dimensions(folder: Path, meta: dict[str, Any], configs: ModelConfigs) -> None:
    """Raises a `UserError` if the dimensions of the weights differ from `meta.json`."""
    transformer = required(configs.transformer, 'transformer')
    tokenizer = required(configs.tokenizer, 'tokenizer')
    widths = [tokenizer.base_channels * m for m in tokenizer.channel_multipliers]
    stated, stated_tokenizer = meta['transformer'], meta['tokenizer']
    pairs = {
        'depth': (transformer.depth, stated['depth']),
        'width': (transformer.width, stated['width']),
        'num_heads': (transformer.num_heads, stated['num_heads']),
        'text_channels': (transformer.text_channels, stated['text_channels']),
        'text_max_length': (transformer.text_length, stated['text_max_length']),
        'spatial_patchify': (transformer.spatial_patchify, stated['spatial_patchify']),
        'codebook_dim': (tokenizer.bits, stated_tokenizer['codebook_dim']),
        'num_res_blocks': (tokenizer.residual_blocks, stated_tokenizer['num_res_blocks']),
        'channels': (
            widths,
            [
                stated_tokenizer['base_channels'] * m
                for m in stated_tokenizer['channel_multipliers']
            ],
        ),
    }
    wrong = [f'{name} is {a}, meta.json says {b}' for name, (a, b) in pairs.items() if a != b]
    if wrong:
        raise UserError(f'{folder}: weights of other dimensions: ' + '; '.join(wrong))
