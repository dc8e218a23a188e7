"""Model folders by name: a repository is looked at before its weights are downloaded."""

from pathlib import Path

from infinity_jax.errors import UserError
from infinity_jax.runtime.hub import WEIGHT_ENDINGS, local_folder, repository_files
from infinity_jax.runtime.remote import is_remote
from infinity_jax.weights.model_folder import (
    FORMAT,
    PARTS,
    check_description,
    conversion,
    existing_folder,
)
from infinity_jax.weights.weight_files import read_json

# Patterns of a model folder's files in a repository, which may have other folders as well.
MODEL_FILES = (
    'config.json',
    *(
        f'{part}{rest}'
        for part in PARTS[:2]
        for rest in ('.safetensors', '-*.safetensors', '.*.json')
    ),
    *(f'text_encoder/*.{ending}' for ending in ('json', 'safetensors', 'model')),
)


def fetch_model(
    name: str | Path, revision: str | None = None, cache_dir: str | Path | None = None
) -> Path:
    """A model folder on this machine; of a repository the weights come after a look at the rest.

    Args:
      name: a folder, or org/name on the hub.
      revision, cache_dir: see `local_folder`.

    Raises:
      UserError: there is no such folder, or the repository holds no model folder.
    """
    folder = local_folder(name, revision, cache_dir, ('config.json',))
    if is_remote(name):
        check_description(name, read_json(folder / 'config.json'))
    if existing_folder(name).exists():
        return folder
    path = folder / 'config.json'
    if not path.is_file() or read_json(path).get('format') != FORMAT:
        files = [n for n in repository_files(str(name), revision) if n.endswith(WEIGHT_ENDINGS)]
        raise UserError(
            f'{name}: no model folder of {FORMAT}, so no weights were downloaded; download what '
            f'you need of it. {conversion(files)}'
        )
    return local_folder(name, revision, cache_dir, MODEL_FILES)
