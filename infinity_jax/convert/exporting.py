"""Exports a model folder or a training checkpoint to files that the released PyTorch code loads."""

import dataclasses
import functools
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from infinity_jax.config import DTYPES, ModelConfigs, TransformerConfig, required
from infinity_jax.convert.importing import with_bar
from infinity_jax.convert.names import Naming
from infinity_jax.convert.plan import Plan, layer_of
from infinity_jax.convert.released_code import (
    FILE_NAME,
    check_classifier,
    misfits,
    released_chunks,
    write_hidden,
)
from infinity_jax.errors import UserError
from infinity_jax.parsing import from_mapping
from infinity_jax.runtime.atomic_write import flush_and_rename, temporary_path
from infinity_jax.runtime.remote import any_path
from infinity_jax.runtime.remote_copy import local_copy, local_output
from infinity_jax.text.tokenizer import TOKENIZER_FILES
from infinity_jax.training.run_folder import run_named
from infinity_jax.weights.fingerprint import kept_by, partner_fingerprint
from infinity_jax.weights.model_folder import existing_folder, read_configs
from infinity_jax.weights.part_weights import (
    PartConfig,
    flat_shapes,
    open_part,
    part_shapes,
    read_part,
)
from infinity_jax.weights.safetensors_writer import SHARD_BYTES, ShardWriter, Spec
from infinity_jax.weights.t5_folder import copy_encoder, save_encoder
from infinity_jax.weights.torch_file.writer import TorchWriter
from infinity_jax.weights.weight_files import LazyTensor, name_problems, read_json

FORMATS = ('pth', 'safetensors')
OURS = re.compile(  # the files of an export
    r'(transformer|tokenizer)(-\d{5}-of-\d{5})?\.(pth|safetensors)|model\.safetensors\.index\.json'
    rf'|{re.escape(FILE_NAME)}'
)
INDEX = 'model.safetensors.index.json'  # the file that the released loader of shards opens


WriteText = Callable[[Path, str | None], None]  # (folder, dtype or None for the stored one)


@dataclasses.dataclass(frozen=True)
class Part:
    """Weights to export.

    Attributes:
      config: of a transformer or a tokenizer.
      read: (our path, layer) -> array.
      dtypes: our path -> stored dtype.
      source: layout and dtypes of the torch file that it was imported from; {} if there was none.
    """

    name: str
    config: PartConfig
    read: Callable[[str, int | None], np.ndarray]
    dtypes: Mapping[str, Any]
    source: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class _Options:
    """The options of `to_torch_files`."""

    file_format: str
    shard_size: int
    chunks: int | None
    scale_axis: int | None
    dtype: str | None


def to_torch_files(
    checkpoint: str | Path,
    out: str | Path,
    *,
    ema: bool = False,
    file_format: str = 'pth',
    shard_size: int = SHARD_BYTES,
    chunks: int | None = None,
    scale_axis: int | None = None,
    dtype: str | None = None,
) -> list[Path]:
    """Writes transformer and tokenizer in the released layout, and the text encoder's folder.

    Names, dtypes and the layout of `scale_mul` are those of the imported file. A model trained here
    has the chunks of the released code, see `released_chunks`, and the stored dtype. Where the
    released code cannot load the model as it stands, a line says why.

    Args:
      checkpoint: a model folder; or a run folder, its `checkpoints`, or one step of them.
      out: folder for the files. Files of an earlier export are replaced, others are kept.
      ema: export the moving average of a training checkpoint.
      file_format: 'pth' or 'safetensors', the latter with an index.
      shard_size: bytes per safetensors file above which the transformer is split into shards.
      chunks: number of chunks in the blocks' names.
      scale_axis: 1 for `scale_mul_1H11` of (1, heads, 1, 1), 2 for (1, 1, heads, 1).
      dtype: of all floating-point tensors.

    Returns:
      the files written.

    Raises:
      UserError: there is nothing to export, or an option does not fit the model.
    """
    if file_format not in FORMATS:
        raise UserError(f'format {file_format!r} is unknown; choose one of {", ".join(FORMATS)}')
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f'dtype {dtype!r} is unknown; choose one of {", ".join(DTYPES)}')
    if shard_size < 1:
        raise UserError(f'shard size is {shard_size}; wanted at least 1 byte')
    configs, parts, write_text = _parts_of(checkpoint, ema)
    check_classifier(str(checkpoint), configs)
    options = _Options(file_format, shard_size, chunks, scale_axis, dtype)
    with local_output(out, lambda name: bool(OURS.fullmatch(name))) as folder:
        try:
            names = _export(folder, configs, parts, write_text, options)
        except OSError as error:
            raise UserError(
                f'{out}: cannot be written ({error}); free space or name another'
            ) from None
    lines = misfits(configs) + _other_chunks(parts, options)
    if lines:
        print(
            f'{checkpoint}: the released code does not load this model without changes: '
            f'{"; ".join(lines)}'
        )
    return [any_path(out) / name for name in names]


def _export(
    out: Path, configs: ModelConfigs, parts: list[Part], write_text: WriteText, options: _Options
) -> list[Path]:
    """Writes the files of an export into a folder of this machine; returns their names."""
    temporary = temporary_path(out / 'export')
    try:
        temporary.mkdir(parents=True)
        for part in parts:
            naming = _naming(part, options.chunks, options.scale_axis)
            plan = Plan.of(part.config, naming)
            specs = plan.torch_specs(_dtype_of(part, naming, options.dtype))
            arrays = with_bar(plan.write(part.read, specs), len(specs), part.name)
            if options.file_format == 'pth':
                _write_pth(temporary, part.name, specs, arrays)
            else:
                limit = options.shard_size if part.name == 'transformer' else sys.maxsize
                _write_safetensors(temporary, part.name, specs, arrays, limit)
        write_text(temporary / 'text_encoder', options.dtype)
        known = kept_by(options.dtype, configs.trained_with)
        write_hidden(temporary, dataclasses.replace(configs, trained_with=known))
        return _move(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _naming(part: Part, chunks: int | None, scale_axis: int | None) -> Naming:
    source, config = part.source, part.config
    if chunks is None:
        own = released_chunks(config) if isinstance(config, TransformerConfig) else 1
        chunks = source.get('chunks', own)
    naming = Naming(chunks, source.get('scale_axis', 1) if scale_axis is None else scale_axis)
    if isinstance(config, TransformerConfig) and (
        naming.chunks < 1 or config.depth % naming.chunks
    ):
        raise UserError(
            f'--chunks {naming.chunks} does not divide the {config.depth} blocks; name a '
            'number that does'
        )
    return naming


def _other_chunks(parts: list[Part], options: _Options) -> list[str]:
    """A line about another number of chunks than the released code finds; [] if it finds them."""
    lines = []
    for part in parts:
        if isinstance(part.config, TransformerConfig):
            seen = _naming(part, options.chunks, options.scale_axis).chunks
            if seen != (wanted := released_chunks(part.config)):
                lines.append(f'the blocks are named in {seen} chunks, there {wanted}')
    return lines


def _dtype_of(part: Part, naming: Naming, dtype: str | None) -> Callable[[str, str], Any]:
    """(torch name, our path) -> dtype: `dtype`, else the source's, else the stored one."""
    if dtype is not None:
        return lambda name, ours: dtype
    if not part.source:
        return lambda name, ours: part.dtypes[ours]
    # The source may use another naming; both plans list tensors in the same order.
    before = Naming(part.source.get('chunks', 1), naming.scale_axis)
    plans = (Plan.of(part.config, naming), Plan.of(part.config, before))
    names = [[*(e.torch for e in plan.entries), *plan.buffers] for plan in plans]
    old_name = dict(zip(*names, strict=True))
    others = part.source['other_dtypes']
    return lambda name, ours: others.get(old_name[name], part.source['dtype'])


def _write_pth(
    folder: Path, part: str, specs: Mapping[str, Spec], arrays: Iterator[tuple[str, np.ndarray]]
) -> None:
    under = ('vae',) if part == 'tokenizer' else ()  # where the released code expects it
    with TorchWriter(folder / f'{part}.pth', specs, under) as writer:
        for name, array in arrays:
            writer.write(name, array)


def _write_safetensors(
    folder: Path,
    part: str,
    specs: Mapping[str, Spec],
    arrays: Iterator[tuple[str, np.ndarray]],
    limit: int,
) -> None:
    index = INDEX if part == 'transformer' else ''
    with ShardWriter(folder, part, specs, limit, index) as writer:
        for name, array in arrays:
            writer.write(name, array)


def _move(folder: Path, out: Path) -> list[Path]:
    """Moves finished files to their place, the index last; deletes an earlier export.

    Returns:
      the names of the files, below `out`.
    """
    files = sorted(p.relative_to(folder) for p in folder.rglob('*') if p.is_file())
    for old in out.iterdir():  # of an earlier export in another format or with other shards
        if OURS.fullmatch(old.name) and Path(old.name) not in files:
            old.unlink()
    for file in sorted(files, key=lambda f: f.name == INDEX):
        (out / file).parent.mkdir(exist_ok=True)
        flush_and_rename(folder / file, out / file)
    return files


def _parts_of(checkpoint: str | Path, ema: bool) -> tuple[ModelConfigs, list[Part], WriteText]:
    """The model's configurations, the parts to export, and what writes the text encoder."""
    run_dir, step = run_named(checkpoint)
    if run_dir is not None:
        return _parts_of_run(run_dir, step, ema)
    folder = local_copy(checkpoint)
    if not folder.exists():
        raise UserError(f'{checkpoint}: no such folder; name a model folder or a run folder')
    if ema:
        raise UserError(
            f'{checkpoint}: a model folder holds one set of weights; --ema is for the checkpoints '
            'of a run'
        )
    return _parts_of_folder(folder)


def _parts_of_folder(folder: Path) -> tuple[ModelConfigs, list[Part], WriteText]:
    folder, configs = existing_folder(folder), read_configs(folder)
    parts, problems = [], []
    for name, config in (('transformer', configs.transformer), ('tokenizer', configs.tokenizer)):
        if config is None:
            continue
        tensors = open_part(folder, name)
        wanted = flat_shapes(part_shapes(config))
        found = {n: tuple(t.shape) for n, t in tensors.items()}
        problems += [f'{name}: {line}' for line in name_problems(wanted, found)]
        parts.append(
            Part(
                name,
                config,
                functools.partial(_read_stored, tensors),
                {n: t.dtype for n, t in tensors.items()},
                configs.source.get(name, {}),
            )
        )
    if problems:
        raise UserError(f'{folder}: ' + '; '.join(problems))

    if configs.transformer and configs.tokenizer and not configs.trained_with:
        # The folder is of an older version: its tokenizer is the one that it was saved with.
        params = read_part(folder, 'tokenizer', configs.tokenizer, [])
        seen = partner_fingerprint(configs.tokenizer, required(params, 'tokenizer'))
        configs = dataclasses.replace(configs, trained_with=seen)

    def write_text(target: Path, dtype: str | None) -> None:
        if (folder / 'text_encoder').is_dir():
            copy_encoder(folder / 'text_encoder', target, dtype)
            for name in TOKENIZER_FILES:
                if (folder / 'text_encoder' / name).is_file():
                    shutil.copy(folder / 'text_encoder' / name, target)

    return configs, parts, write_text


def _read_stored(tensors: Mapping[str, LazyTensor], ours: str, layer: int | None) -> np.ndarray:
    return tensors[ours].read(() if layer is None else (layer,))


def _parts_of_run(
    run_dir: Path, step: int | None, ema: bool
) -> tuple[ModelConfigs, list[Part], WriteText]:
    from infinity_jax.runtime.hub import DEMO_FOLDER
    from infinity_jax.training.checkpoint_weights import load_weights
    from infinity_jax.training.tokenizer.task import TokenizerRunConfig
    from infinity_jax.training.transformer.config import T2IConfig
    from infinity_jax.training.transformer.parts import load_parts

    fields = read_json(run_dir / 'config.json')
    weights = load_weights(run_dir, step, 'ema' if ema else 'params')
    if fields.get('task') == 'tokenizer':
        tokenizer = from_mapping(TokenizerRunConfig, fields, stored=True).tokenizer
        parts = [_in_memory('tokenizer', tokenizer, weights, {})]
        return ModelConfigs(tokenizer=tokenizer), parts, lambda *_: None
    config = from_mapping(T2IConfig, fields, stored=True)
    if config.lora.rank:
        raise UserError(
            f'{run_dir}: its checkpoints hold LoRA adapters alone; name the finished model, '
            f'{run_dir / "model"}, or one of infinity-jax convert merge-lora'
        )
    loaded = load_parts(config)
    parts = [
        _in_memory(name, part_config, params, loaded.configs.source.get(name, {}))
        for name, part_config, params in (
            ('transformer', config.transformer, weights['transformer']),
            (
                'tokenizer',
                required(loaded.configs.tokenizer, 'tokenizer'),
                loaded.tokenizer_params,
            ),
        )
    ]

    def write_text(target: Path, dtype: str | None) -> None:
        if 'text' in weights:
            text = required(loaded.configs.text, 'text encoder')
            save_encoder(target, text, weights['text'], dtype or 'float32')
        else:
            copy_encoder(config.text.folder or DEMO_FOLDER / 'text_encoder', target, dtype)
        required(loaded.text_tokenizer, 'vocabulary').save(target)

    return loaded.configs, parts, write_text


def _in_memory(name: str, config: PartConfig, params: Any, source: Mapping[str, Any]) -> Part:
    flat = flatten_dict(params, sep='.')
    dtypes = {path: array.dtype for path, array in flat.items()}
    return Part(name, config, lambda ours, layer: layer_of(flat[ours], layer), dtypes, source)
