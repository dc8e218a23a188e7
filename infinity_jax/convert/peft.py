"""Adapters of a model folder in PEFT's layout, named as the exported PyTorch model."""

import os
from pathlib import Path

from infinity_jax.config import required
from infinity_jax.convert.released_code import check_classifier, released_chunks
from infinity_jax.errors import UserError
from infinity_jax.weights.adapter_file import check_adapter, load_adapter
from infinity_jax.weights.model_folder import read_configs
from infinity_jax.weights.peft_adapter import CONFIG_NAME, save_peft


def to_peft(
    checkpoint: str | os.PathLike[str],
    adapter: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    base: str = '',
    chunks: int | None = None,
) -> None:
    """Writes adapters as a folder that PEFT loads.

    Args:
      checkpoint: model folder that the adapters were trained on.
      adapter: see `load_adapter`.
      out: folder to write; an older one of this layout is replaced.
      base: name of the PyTorch model, for base_model_name_or_path.
      chunks: in the names of the blocks; None: as imported, else as in the released code.

    Raises:
      UserError: something is missing or does not fit, or `out` has other content.
    """
    out = Path(out)
    if out.exists() and not (out / CONFIG_NAME).is_file() and any(out.iterdir()):
        raise UserError(f'--out {out} exists and holds no adapters; name another folder')
    configs = read_configs(checkpoint)
    transformer = required(configs.transformer, 'transformer')
    check_classifier(os.fspath(checkpoint), configs)
    config, adapters = load_adapter(os.fspath(adapter))
    check_adapter(transformer, adapters, config, os.fspath(adapter))
    imported = configs.source.get('transformer', {}).get('chunks')
    chunks = chunks or imported or released_chunks(transformer)
    if transformer.depth % chunks:
        raise UserError(
            f'--chunks {chunks} does not divide the {transformer.depth} blocks; name a number '
            'that does'
        )
    save_peft(out, adapters, config, base=base, chunks=chunks)
