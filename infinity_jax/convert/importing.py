"""Imports released PyTorch files into a model folder, tensor by tensor."""

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from infinity_jax.config import (
    DTYPES,
    ModelConfigs,
    TokenizerConfig,
    TransformerConfig,
    required,
)
from infinity_jax.convert.continuous_vae import is_continuous, read_continuous
from infinity_jax.convert.dimensions import Tensors, read_tokenizer_config, read_transformer_config
from infinity_jax.convert.plan import TOKEN_STRIDE, Plan, check_pair
from infinity_jax.convert.released_code import read_hidden
from infinity_jax.convert.state_dict import open_tokenizer, open_transformer
from infinity_jax.errors import UserError
from infinity_jax.runtime.remote import any_path
from infinity_jax.runtime.remote_copy import local_copy
from infinity_jax.scales import ScaleSchedule
from infinity_jax.text.tokenizer import TextTokenizer
from infinity_jax.weights.fingerprint import kept_by, partner_fingerprint
from infinity_jax.weights.model_folder import (
    FORMAT,
    replacing,
    write_description,
)
from infinity_jax.weights.part_weights import read_part
from infinity_jax.weights.safetensors_writer import ShardWriter
from infinity_jax.weights.t5_folder import copy_encoder, open_encoder
from infinity_jax.weights.weight_files import read_json


def from_torch(
    out: str | Path,
    *,
    transformer: str | Path | None = None,
    tokenizer: str | Path | None = None,
    text_encoder: str | Path | None = None,
    ema: bool = False,
    dtype: str | None = None,
    token_stride: int | None = None,
    grids: Sequence[tuple[int, int]] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> ModelConfigs:
    """Writes a model folder from released files.

    Args:
      out: the folder. An existing model folder is replaced; other content is refused.
      transformer, tokenizer: .pth or .safetensors files or folders of shards. A transformer needs
        its tokenizer, whose d alone shows how many codes a token has. A tokenizer without a
        transformer may be a continuous autoencoder, as a start for training: its latent's channels
        become the bits.
      text_encoder: Hugging Face folder, or org/name of a repository, of a T5 v1.1 encoder or
        whole model.
      ema: import the transformer's moving average from a training checkpoint.
      dtype: of the stored weights; None keeps each tensor's own.
      token_stride: pixels per transformer token along an edge; None: as exported, else 16.
      grids: token grids (h, w) of a model with its own schedule, or the first ones of a released
        ratio, which record the image size that it was trained at; None for the released ones.
      overrides: 'transformer.FIELD' or 'tokenizer.FIELD' -> value; replaces inferred values.

    Returns:
      the configurations in the folder.

    Raises:
      UserError: tensors are missing, unknown or misshapen, of all files at once, or the parts do
        not fit together.
    """
    out = any_path(out)
    if transformer is None and tokenizer is None and text_encoder is None:
        raise UserError('nothing to convert; name --transformer, --tokenizer or --text-encoder')
    if transformer is not None and tokenizer is None:
        raise UserError('a transformer is read together with its tokenizer; name --tokenizer too')
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f'dtype {dtype!r} is unknown; choose one of {", ".join(DTYPES)}')
    check_target(out)
    hidden = read_hidden(transformer, tokenizer)
    changes = {part: hidden.fields.get(part, {}) | set_ for part, set_ in _split(overrides).items()}
    sources, problems = _open_sources(transformer, tokenizer, ema, changes)
    stride = token_stride or hidden.token_stride or TOKEN_STRIDE
    parts: dict[str, Any] = {each.part: each.config for each in sources}
    configs = ModelConfigs(
        **parts,
        text=None if text_encoder is None else open_encoder(text_encoder)[0],
        schedule=hidden.schedule if grids is None else _schedule(grids, stride),
        source={each.part: each.described for each in sources},
    )
    if configs.transformer and configs.tokenizer and tokenizer is not None:
        check_pair(configs.transformer, configs.tokenizer, tokenizer, stride)
    if configs.tokenizer and 'norm_groups' not in changes['tokenizer']:
        print(
            f'{tokenizer}: tokenizer.norm_groups {configs.tokenizer.norm_groups} is assumed, as '
            'shapes do not show it; another with --set tokenizer.norm_groups=N'
        )
    problems += configs.problems()
    if problems:
        raise UserError('; '.join(problems))
    with replacing(out) as folder:
        for each in sources:
            specs = each.plan.our_specs(each.tensors, dtype)
            arrays = each.plan.read(each.tensors, specs)
            with ShardWriter(folder, each.part, specs) as writer:
                for name, layer, array in with_bar(arrays, len(each.plan.entries), each.part):
                    writer.write(name, array, layer)
        if text_encoder is not None:
            copy_encoder(text_encoder, folder / 'text_encoder', dtype)
            TextTokenizer.from_folder(text_encoder).save(folder / 'text_encoder')
        if configs.transformer and configs.tokenizer and kept_by(dtype, 'known'):
            configs = _with_fingerprint(folder, configs, hidden.trained_with)
        write_description(folder, configs)
    return configs


def _with_fingerprint(folder: Path, configs: ModelConfigs, recorded: str) -> ModelConfigs:
    """The configurations with the fingerprint of the tokenizer in `folder`.

    Raises:
      UserError: an export recorded another one next to the transformer.
    """
    tokenizer = required(configs.tokenizer, 'tokenizer')
    problems: list[str] = []
    params = read_part(folder, 'tokenizer', tokenizer, problems)
    assert params is not None, problems  # it was just written
    seen = partner_fingerprint(tokenizer, params)
    if recorded not in ('', seen):
        raise UserError(
            f'--tokenizer has the fingerprint {seen}, but the transformer was trained with '
            f'{recorded}: these two do not belong together; give the tokenizer of the same export'
        )
    return dataclasses.replace(configs, trained_with=seen)


def _schedule(grids: Sequence[tuple[int, int]], token_stride: int) -> ScaleSchedule:
    """The schedule of these grids; prints how their positions count."""
    if token_stride != TOKEN_STRIDE:
        return ScaleSchedule.free(grids)
    schedule = ScaleSchedule.of_released_code(grids)
    height, width = schedule.full_grid
    own = schedule.full_grid == schedule.grids[-1]
    of = 'their own last grid' if own else 'the full grid of a released ratio'
    print(f'positions count on {height} x {width}, {of}')
    return schedule


@dataclasses.dataclass(frozen=True)
class _Source:
    """The torch tensors of one part, and the plan of their conversion."""

    part: str
    config: TransformerConfig | TokenizerConfig
    path: str | Path
    tensors: Tensors
    plan: Plan
    described: dict[str, Any]


def check_target(out: Path) -> None:
    """Raises `UserError` if `out` has content other than a model folder."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    config = out / 'config.json'
    if not (config.is_file() and read_json(local_copy(config)).get('format') == FORMAT):
        raise UserError(f'--out {out} exists and is not a model folder; name another one')


def _split(overrides: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """'part.field' -> value, as part -> field -> value."""
    changes: dict[str, dict[str, Any]] = {'transformer': {}, 'tokenizer': {}}
    for name, value in (overrides or {}).items():
        part, _, field = name.partition('.')
        if part not in changes or not field:
            raise UserError(f'--set {name}: wanted transformer.FIELD or tokenizer.FIELD')
        changes[part][field] = value
    return changes


def _open_sources(
    transformer: str | Path | None,
    tokenizer: str | Path | None,
    ema: bool,
    changes: Mapping[str, Mapping[str, Any]],
) -> tuple[list[_Source], list[str]]:
    """The parts in the files, and the problems of each file."""
    sources, problems = [], []
    bits = None
    if tokenizer is not None:
        tensors = open_tokenizer(tokenizer)
        try:
            if is_continuous(tensors):
                config, tensors = _read_continuous(
                    tokenizer, tensors, transformer is not None, changes['tokenizer']
                )
            else:
                tensors = _without_losses(tokenizer, tensors)
                config = read_tokenizer_config(tensors, **changes['tokenizer'])
            bits = config.bits
            described = describe_source(tensors)
            plan = Plan.of(config)
            sources.append(_Source('tokenizer', config, tokenizer, tensors, plan, described))
        except UserError as error:
            problems.append(f'{tokenizer}: {error}')
    if transformer is not None:
        tensors = open_transformer(transformer, ema)
        try:
            read = read_transformer_config(tensors, bits, **changes['transformer'])
            described = describe_source(tensors) | dataclasses.asdict(read[1])
            plan = Plan.of(*read)
            sources.append(_Source('transformer', read[0], transformer, tensors, plan, described))
        except UserError as error:
            problems.append(f'{transformer}: {error}')
    for each in sources:
        wrong = each.plan.problems(each.tensors)
        if wrong:
            problems.append(f'{each.path}: ' + '; '.join(wrong))
    return sources, problems


def _without_losses(path: str | Path, tensors: Tensors) -> Tensors:
    """A tokenizer's tensors without those of its training losses; prints how many there are."""
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith('loss.')}
    if len(kept) < len(tensors):
        print(f'{path}: not read: {len(tensors) - len(kept)} tensors of losses (loss.…)')
    return kept


def _read_continuous(
    path: str | Path, tensors: Tensors, paired: bool, changes: Mapping[str, Any]
) -> tuple[TokenizerConfig, Tensors]:
    """Reads a continuous autoencoder as a tokenizer to train; prints what was left out."""
    if paired:
        raise UserError(
            'a continuous autoencoder, whose latent has no bits; give the tokenizer that the '
            'transformer was trained with'
        )
    config, tensors, lines = read_continuous(tensors, **changes)
    for line in ('a continuous autoencoder, to start training a tokenizer from', *lines):
        print(f'{path}: {line}')
    return config, tensors


def describe_source(tensors: Tensors) -> dict[str, Any]:
    """The dtypes of a torch file, for an export with the same ones.

    Returns:
      {'dtype': the most common one, 'other_dtypes': {name: dtype}}.
    """
    names = {name: np.dtype(tensor.dtype).name for name, tensor in tensors.items()}
    common = collections.Counter(names.values()).most_common(1)[0][0]
    return {'dtype': common, 'other_dtypes': {n: d for n, d in names.items() if d != common}}


def with_bar(items: Iterator, total: int, part: str) -> Iterator:
    """Shows a progress bar over the tensors of a part, on terminals."""
    return tqdm(items, part, total, unit='tensor', dynamic_ncols=True, disable=None)
