"""run.json: all settings and versions of a benchmark run, so that it continues as it began."""

import dataclasses
import hashlib
import importlib.metadata
import json
import pathlib
import platform
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from infinity_jax.config import QuantizationConfig
from infinity_jax.errors import UserError
from infinity_jax.inference.sampling import SamplingConfig
from infinity_jax.runtime.atomic_write import atomic_file
from infinity_jax.runtime.hub import DEMO_FOLDER

FILE = 'run.json'
PER_PROMPT, PER_IMAGE = 'prompt', 'image'  # where random numbers start again
PACKAGES = ('jax', 'jaxlib', 'flax', 'numpy', 'pillow', 'transformers')
# Entries that may differ when a run continues: the same prompts in another place, and versions and
# devices: a warning names them.
FREE = ('prompts.file', 'rewritten.file', 'model.name')
WARNED = ('versions', 'devices')
# Runs of earlier versions left them open (null) where no flag chose them.
ONCE_OPEN = ('model.dtype', 'model.text_dtype')
LENGTH_BYTES = 8  # at the start of a safetensors file


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """The settings of a run, apart from its prompts.

    Attributes:
      checkpoint: model folder, or org/name on the hub.
      revision: of the repository.
      model: precision and image size, as keywords of `read_for_generation`.
      text_length: tokens that prompts are padded to and cut at; None: all that the model reads.
      max_batch: images per program call and share of the mesh, at most; None: 16, or as the run
        began.
      mesh: the devices of this host that share its images; None: the default device.
      sampling, quantization: see there.
      seed: of all random numbers.
      seeds: 'prompt': image j of every prompt has the same random numbers, as in the released
        scripts, which set the seed again for each prompt; 'image': every image has its own.
    """

    checkpoint: str = str(DEMO_FOLDER)
    revision: str | None = None
    model: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    text_length: int | None = None
    max_batch: int | None = None
    mesh: Mesh | None = None
    sampling: SamplingConfig = SamplingConfig(guidance=4.0, temperature=1.0)
    quantization: QuantizationConfig = QuantizationConfig()
    seed: int = 0
    seeds: str = PER_PROMPT


def model_digest(folder: pathlib.Path) -> str:
    """Hash of a model folder's configurations and of the headers of its weights.

    The headers of our own files have a hash of each tensor.
    """
    digest = hashlib.sha256()
    for path in sorted([*folder.glob('*.json'), *folder.rglob('*.safetensors')]):
        digest.update(path.relative_to(folder).as_posix().encode())
        with path.open('rb') as file:
            if path.suffix == '.safetensors':
                length = int.from_bytes(file.read(LENGTH_BYTES), 'little')
                digest.update(file.read(min(length, path.stat().st_size)))
            else:
                digest.update(file.read())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of those that decide what an image looks like."""
    from infinity_jax import __version__

    found = {'infinity_jax': __version__, 'python': platform.python_version()}
    return found | {name: importlib.metadata.version(name) for name in PACKAGES}


def devices(mesh: Mesh | None) -> dict[str, Any]:
    """The devices of this process that generate, and the number of processes."""
    kind, count = jax.local_devices()[0].device_kind, 1 if mesh is None else mesh.devices.size
    return {'kind': kind, 'local': count, 'processes': jax.process_count()}


def claim(out: pathlib.Path, settings: Mapping[str, Any]) -> None:
    """Writes run.json, or compares it with that of the run that continues.

    Raises:
      UserError: the folder has files of something else, or the run began with other settings.
    """
    path = out / FILE
    if continues(out, settings):
        return
    if out.is_dir() and any(not each.name.startswith('.') for each in out.iterdir()):
        raise UserError(f'--out {out}: has files but no {FILE}; name a new folder')
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(settings, indent=2) + '\n', encoding='utf-8')


def continues(out: pathlib.Path, settings: Mapping[str, Any]) -> bool:
    """Whether a folder has the beginning of this run.

    Raises:
      UserError: it has that of a run with other settings.
    """
    if not (out / FILE).exists():
        return False
    _compare(out / FILE, read_run(out), settings)
    return True


def read_run(out: pathlib.Path) -> dict[str, Any]:
    """The settings of a run.

    Raises:
      UserError: run.json is damaged.
    """
    try:
        run = json.loads((out / FILE).read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise UserError(f'{out / FILE}: {error}; name another folder') from None
    if not isinstance(run, dict) or not all(
        isinstance(run.get(name, {}), dict) for name in ('prompts', 'sampling')
    ):
        raise UserError(f'{out / FILE}: not the settings of a run; name another folder')
    return run


def _compare(path: pathlib.Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    old, new = dict(_flat(before)), dict(_flat(json.loads(json.dumps(now))))
    for name in dict.fromkeys([*old, *new]):
        if name in FREE or old.get(name) == new.get(name):
            continue
        change = f'{name} was {old.get(name)}, now it is {new.get(name)}'
        once_open = name in ONCE_OPEN and old.get(name) is None
        if once_open or name.startswith(WARNED):
            warnings.warn(f'{path}: {change}; new images may differ in a few bits', stacklevel=2)
        else:
            raise UserError(f'{path}: {change}; use the settings of that run, or another --out')


def _flat(tree: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f'{prefix}{key}.')
        else:
            yield f'{prefix}{key}', value
