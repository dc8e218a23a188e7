"""Reads with transformers the files of a Hugging Face folder that are not ours to parse.

Its import takes seconds, so both functions import it when they are called. Folders with a
tokenizer.json and a complete config.json do without.
"""

import os
from pathlib import Path
from types import ModuleType
from typing import Any

from infinity_jax.errors import UserError, first_line


def tokenizer_json(folder: Path) -> bytes:
    """Converts a folder's `spiece.model` to the content of a `tokenizer.json`.

    Raises:
      UserError: transformers cannot read the folder's tokenizer.
    """
    import sentencepiece

    transformers = _transformers()
    model = folder / 'spiece.model'
    try:
        # transformers takes a damaged file for one of another kind, and its error misleads.
        sentencepiece.SentencePieceProcessor(model_file=str(model))
        # A folder of a vocabulary alone has no config.json with the model type.
        kind = {} if (folder / 'config.json').is_file() else {'tokenizer_type': 't5'}
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, **kind
        )
        return tokenizer.backend_tokenizer.to_str().encode()
    except Exception as error:  # of transformers, sentencepiece, protobuf or tokenizers
        raise UserError(
            f'{model}: not readable as the tokenizer of a T5 ({first_line(error, 200)}); '
            'copy the folder again'
        ) from None


def complete_config(folder: Path) -> dict[str, Any]:
    """All fields of a folder's `config.json`, absent ones with the defaults of its model type.

    Raises:
      UserError: transformers cannot read it.
    """
    transformers = _transformers()
    try:
        return transformers.AutoConfig.from_pretrained(folder, local_files_only=True).to_dict()
    except Exception as error:  # of transformers or its validation
        raise UserError(
            f'{folder / "config.json"}: transformers cannot read it ({first_line(error, 200)}); '
            'complete it'
        ) from None


def _transformers() -> ModuleType:
    # Without PyTorch, transformers prints on import that models are not available.
    name = 'TRANSFORMERS_NO_ADVISORY_WARNINGS'
    before = os.environ.get(name)
    os.environ[name] = '1'
    try:
        import transformers
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
    return transformers
