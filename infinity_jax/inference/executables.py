"""Compiled programs stored in the model folder: a later start neither traces nor compiles them.

A file holds the executable itself and not exported StableHLO, which would still be lowered and
compiled. It fits one machine and one version of everything that made it: its name is a hash of all
that it depends on, so that it is found only where it fits.
"""

import contextlib
import dataclasses
import functools
import hashlib
import hmac
import json
import os
import pathlib
import pickle
import platform
import secrets
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import flax
import flax.linen as nn
import jax
import jaxlib
from jax.experimental import serialize_executable

from infinity_jax.errors import UserError, in_one_line
from infinity_jax.runtime.atomic_write import atomic_file
from infinity_jax.runtime.compile_cache import user_cache_folder, without_compile_cache
from infinity_jax.sharding import default_device

FOLDER = 'compiled'  # inside the model folder
ENDING = '.program'
NO_PROGRAM_CHANGES = ('cache', 'log', 'traceback', 'pprint', 'dump', 'transfer', 'platforms')
COMPILER_FLAGS = ('XLA_FLAGS', 'LIBTPU_INIT_ARGS', 'NVIDIA_TF32_OVERRIDE')
SHOWN = 60  # characters of a setting in a message

Description = dict[str, str]


@functools.cache
def surroundings() -> Description:
    """All that a compiled program depends on, apart from the computation itself."""
    device = _device()
    settings = {
        name: repr(value)
        for name, value in sorted(jax.config.values.items())
        if not any(word in name for word in NO_PROGRAM_CHANGES)
    }
    settings |= {name: os.environ.get(name, '') for name in COMPILER_FLAGS}
    return {
        'infinity_jax': _source_digest(),
        'jax': jax.__version__,
        'jaxlib': jaxlib.__version__,
        'flax': flax.__version__,
        'python': sys.version.split()[0],
        'platform': device.platform,
        'backend': device.client.platform_version,
        'device': device.device_kind,
        'devices': str(jax.device_count()),
        'processor': _processor(),
        'settings': _digest(settings),
    }


def describe_call(
    function: Callable[..., Any], static: Mapping[str, Any], traced: Mapping[str, Any]
) -> Description:
    """Describes a call: the function, its static arguments, shapes and dtypes of the others.

    Settings, inputs and networks are described field by field, as in `settings.top_k`, so that a
    message can name the field that differs.
    """
    described = {'function': function.__name__}
    for name, value in _by_field(static).items():
        described[name] = ' '.join(repr(value).split())
    for name, tree in _by_field(traced).items():
        leaves, structure = jax.tree.flatten(tree)
        shapes = ', '.join(f'{leaf.dtype}{list(leaf.shape)}' for leaf in leaves)
        large = len(leaves) > 4
        described[name] = _digest([shapes, str(structure)]) if large else shapes or 'none'
    return described


def _by_field(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments, with the fields of named tuples and dataclasses instead of these themselves."""
    fields: dict[str, Any] = {}
    for name, value in arguments.items():
        inner = None
        if isinstance(value, tuple) and hasattr(value, '_asdict'):
            inner = value._asdict()
        elif dataclasses.is_dataclass(value) and not isinstance(value, nn.Module):
            inner = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        if inner is None:
            fields[name] = value
        else:
            fields |= _by_field({f'{name}.{key}': part for key, part in inner.items()})
    return fields


def call_jitted(function: Any, static: Mapping[str, Any], traced: Mapping[str, Any]) -> Any:
    """`Executables.call` where nothing is stored or prepared."""
    return function(**static, **traced)


class Executables:
    """Calls compiled functions: stored programs where they fit, jit otherwise.

    Nothing stored changes a result: a program is found by a hash of its function's source, its
    settings and its surroundings. Where a folder holds programs of a function and none fits, one
    line on standard error says why.
    """

    def __init__(self, model_folder: pathlib.Path | None = None):
        """model_folder: its `compiled/` is searched and written to; None: nothing is stored."""
        self._folder = None if model_folder is None else model_folder / FOLDER
        self._ready: dict[str, Future[Callable[..., Any]]] = {}
        self._worker = ThreadPoolExecutor(1, 'executables')

    def prepare(self, function: Any, static: Mapping[str, Any], shapes: Mapping[str, Any]) -> None:
        """Loads or compiles a program in the background, for later calls of these shapes.

        Args:
          function: a jitted function.
          static: its static arguments.
          shapes: `ShapeDtypeStruct`s of the others.
        """

        def make() -> Callable[..., Any]:
            stored = self._stored(described)
            return stored or function.lower(**static, **shapes).compile()

        described = describe_call(function, static, shapes)
        key = _key(described)
        if key not in self._ready:
            self._ready[key] = self._worker.submit(make)

    def call(self, function: Any, static: Mapping[str, Any], traced: Mapping[str, Any]) -> Any:
        """`function(**static, **traced)`, by a prepared or stored program if there is one."""
        described = describe_call(function, static, traced)
        key = _key(described)
        if key not in self._ready:
            found: Future[Callable[..., Any]] = Future()
            found.set_result(self._stored(described) or functools.partial(function, **static))
            self._ready[key] = found
        return self._ready[key].result()(**traced)

    def store(
        self, function: Any, static: Mapping[str, Any], shapes: Mapping[str, Any]
    ) -> pathlib.Path:
        """Compiles a program and writes it, whole or not at all; returns its file.

        Raises:
          UserError: the folder cannot be written.
        """
        described = describe_call(function, static, shapes)
        with without_compile_cache():
            compiled = function.lower(**static, **shapes).compile()
        payload = pickle.dumps(serialize_executable.serialize(compiled))
        header: dict[str, Any] = {'computes': described, 'surroundings': surroundings()}
        path = self._path(described)
        try:
            secret = _secret(make=True)
            assert secret is not None
            header['signature'] = _signature(secret, header, payload)
            with atomic_file(path) as temporary:
                temporary.write_bytes(json.dumps(header).encode() + b'\n' + payload)
        except OSError as error:
            raise UserError(f'{path}: could not be written ({error}); make room there') from None
        return path

    def _path(self, described: Description) -> pathlib.Path:
        assert self._folder is not None, 'nothing is stored without a model folder'
        return self._folder / f'{described["function"]}-{_key(described)[:16]}{ENDING}'

    def _stored(self, described: Description) -> Callable[..., Any] | None:
        """The stored program that computes this, loaded; or a line why there is none."""
        if self._folder is None or not self._folder.is_dir():
            return None
        path = self._path(described)
        if not path.is_file():
            self._explain(described)
            return None
        try:
            header, payload = path.read_bytes().split(b'\n', 1)
            fields = json.loads(header)
            given = fields.pop('signature')
            secret = _secret()
            # A program is machine code: one that someone else put into the folder is not run.
            if secret is None or not hmac.compare_digest(
                given, _signature(secret, fields, payload)
            ):
                raise ValueError('this user did not compile it here')
            program, inputs, outputs = pickle.loads(payload)
            return serialize_executable.deserialize_and_load(
                program, inputs, outputs, execution_devices=[_device()]
            )
        # Files that were cut or changed, and any error of a runtime that cannot load a program.
        except Exception as error:
            _warn(f'{path} is not used ({in_one_line(error, 200)})')
            return None

    def _explain(self, described: Description) -> None:
        """One line on how the stored program that is nearest to this call differs."""
        wanted = described | surroundings()
        assert self._folder is not None
        nearest: Description | None = None
        for path in self._folder.glob(f'{described["function"]}-*{ENDING}'):
            other = _read_header(path)
            differing = {
                name: other.get(name, 'absent')
                for name, value in wanted.items()
                if other.get(name) != value
            }
            if nearest is None or len(differing) < len(nearest):
                nearest = differing
        if nearest:
            lines = [
                f'{name} is {value[:SHOWN]} there, {wanted[name][:SHOWN]} here'
                for name, value in nearest.items()
            ]
            _warn(f'{self._folder} holds no program for this call: {"; ".join(lines)}')


def _read_header(path: pathlib.Path) -> Description:
    """The description in a stored program; empty if the file is cut or changed."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        with open(path, 'rb') as file:
            header = json.loads(file.readline())
        return header['computes'] | header['surroundings']
    return {}


def _warn(reason: str) -> None:
    advice = 'compiling it; infinity-jax compile stores one'
    print(f'{reason}; {advice}', file=sys.stderr)


def _device() -> jax.Device:
    """The device that programs without a mesh run on."""
    device = default_device()
    return device if isinstance(device, jax.Device) else jax.local_devices()[0]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:20]


def _key(described: Description) -> str:
    return hashlib.sha256(
        json.dumps([described, surroundings()], sort_keys=True).encode()
    ).hexdigest()


def _source_digest() -> str:
    """Digest of this package's source: another version may compute something else."""
    package = pathlib.Path(__file__).parent.parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob('*.py')):
        digest.update(f'{path.relative_to(package)}\n'.encode() + path.read_bytes())
    return digest.hexdigest()[:20]


def _processor() -> str:
    """The host's processor with its instruction sets, which programs on it use."""
    try:
        lines = pathlib.Path('/proc/cpuinfo').read_text().split('\n\n')[0].splitlines()
    except OSError:
        return f'{platform.machine()} {platform.processor()}'
    wanted = ('model name', 'flags', 'Features', 'CPU implementer', 'CPU part')
    facts = [line for line in lines if line.split('\t')[0].strip() in wanted]
    name = next((line.split(':', 1)[1].strip() for line in facts if 'name' in line), '')
    return f'{name} {_digest(facts)}'.strip()


def _signature(secret: bytes, header: Mapping[str, Any], payload: bytes) -> str:
    message = json.dumps(header, sort_keys=True).encode() + b'\n' + payload
    return hmac.new(secret, message, 'sha256').hexdigest()


def _secret(make: bool = False) -> bytes | None:
    """This user's own random bytes, which sign the programs that were compiled here."""
    path = user_cache_folder() / 'program_secret'
    if make:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            # Only its owner may read it, from its first moment on.
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), 'wb') as file:
                file.write(secrets.token_bytes(32))
    return path.read_bytes() if path.is_file() else None
