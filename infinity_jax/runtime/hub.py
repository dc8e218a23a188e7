"""Model folders by name: the shipped demo, a local folder, a repository on the Hugging Face hub."""

import fnmatch
import os
import re
from collections.abc import Sequence
from pathlib import Path

from infinity_jax.errors import UserError, in_one_line
from infinity_jax.runtime.atomic_write import previous_folder
from infinity_jax.runtime.remote import is_remote
from infinity_jax.runtime.remote_copy import local_copy

REPOSITORY = re.compile(r'[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*')
DEMO_FOLDER = Path(__file__).parent.parent / 'demo'  # the model that ships with the package
FILES = ('*.json', '*.safetensors', '*.model')  # the files of a model folder
WEIGHT_ENDINGS = ('.pth', '.pt', '.ckpt', '.bin', '.safetensors')
POINTER = b'version https://git-lfs.github.com/spec/'  # how a Git-LFS pointer begins


def local_folder(
    name: str | Path,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    files: Sequence[str] = FILES,
) -> Path:
    """The folder of a model on this machine; a repository, or a store's folder, is copied first.

    An existing folder has priority. The hub's environment variables apply: HF_HUB_OFFLINE (use the
    cache only), HF_TOKEN, HF_HOME.

    Args:
      name: a folder, also of a store (s3://…), or org/name on the hub.
      revision: branch, tag or commit of the repository; None: its main branch.
      cache_dir: where downloads are kept; None: the hub's usual place.
      files: patterns of the files to download.

    Raises:
      UserError: there is no such folder, and it cannot be downloaded.
    """
    if is_remote(name):
        chosen = lambda file: any(fnmatch.fnmatch(file, pattern) for pattern in files)
        return local_copy(name, chosen)
    folder = Path(name)
    # A save that was cut off between its two renames leaves the last good model in the second one.
    for candidate in (folder, previous_folder(folder)):
        if os.path.exists(candidate):  # False too for what cannot be a path
            return candidate
    if Path(name).suffix in WEIGHT_ENDINGS:
        raise UserError(
            f'{name}: no such file, and wanted a model folder; infinity-jax convert from-torch '
            'makes one of released files'
        )
    if isinstance(name, Path) or not REPOSITORY.fullmatch(name):
        raise UserError(
            f'{name}: no such folder; wanted a model folder, or org/name of a Hugging Face '
            'repository'
        )
    return _download(name, revision, cache_dir, files)


def check_content(path: Path) -> None:
    """Raises `UserError` if a file is a Git-LFS pointer in the place of the file itself."""
    with open(path, 'rb') as file:
        if file.read(len(POINTER)) == POINTER:
            raise UserError(
                f'{path}: a Git-LFS pointer, not the file itself; run git lfs pull in its folder, '
                'or download the file again'
            )


def repository_files(name: str, revision: str | None = None) -> list[str]:
    """Names of a repository's files; [] without a network."""
    import huggingface_hub

    try:
        return huggingface_hub.list_repo_files(name, revision=revision)
    except Exception:  # of the hub's client or its HTTP library
        return []


def _download(
    name: str, revision: str | None, cache_dir: str | Path | None, files: Sequence[str]
) -> Path:
    # Imported when needed: most models are local.
    from huggingface_hub import constants, snapshot_download

    tried = f'{name}: no such folder, and no repository with revision {revision or "main"}'
    try:
        folder = snapshot_download(
            name, revision=revision, cache_dir=cache_dir, allow_patterns=list(files)
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
