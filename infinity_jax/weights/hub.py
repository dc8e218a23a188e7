"""Model folders by name: a local one, or a repository on the Hugging Face hub."""

import re
from pathlib import Path

from infinity_jax.errors import UserError, in_one_line
from infinity_jax.runtime.atomic_write import previous_folder

REPOSITORY = re.compile(r'[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*')
FILES = ('*.json', '*.safetensors', '*.model')  # what a model folder consists of


def local_folder(
    name: str | Path, revision: str | None = None, cache_dir: str | Path | None = None
) -> Path:
    """The folder of a model on this machine, downloaded first where `name` is a repository.

    A folder that exists wins. The hub's own environment variables hold: HF_HUB_OFFLINE (only what
    is in the cache), HF_TOKEN, HF_HOME.

    Args:
      name: a folder, or org/name on the hub.
      revision: branch, tag or commit of the repository; None: its main branch.
      cache_dir: where downloads are kept; None: the hub's usual place.

    Raises:
      UserError: there is no such folder and it cannot be had from the hub.
    """
    folder = Path(name)
    # A save that was cut off between its two renames leaves the last good model in the second one.
    for candidate in (folder, previous_folder(folder)):
        if candidate.exists():
            return candidate
    if isinstance(name, Path) or not REPOSITORY.fullmatch(name):
        raise UserError(
            f'{name}: no such folder; wanted a model folder, or org/name of a Hugging Face '
            'repository'
        )
    return _download(name, revision, cache_dir)


def _download(name: str, revision: str | None, cache_dir: str | Path | None) -> Path:
    # Not before it is needed: most models are local.
    from huggingface_hub import constants, snapshot_download

    tried = f'{name}: no such folder, and no repository of revision {revision or "main"} to be had'
    try:
        folder = snapshot_download(
            name, revision=revision, cache_dir=cache_dir, allow_patterns=list(FILES)
        )
    # The hub's client raises errors of its own, of its HTTP library and of the system.
    except Exception as error:
        reason = in_one_line(error, 300)
        advice = 'check the name, the network and HF_TOKEN'
        if constants.HF_HUB_OFFLINE:
            advice = 'unset HF_HUB_OFFLINE to download it'
        raise UserError(
            f'{tried} ({type(error).__name__}: {reason}); {advice}, or name a local folder'
        ) from None
    return Path(folder)
