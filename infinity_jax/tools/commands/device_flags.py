"""Flags of the devices that share the work of a command, and the mesh that they give."""

import argparse
import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from infinity_jax.errors import UserError

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from infinity_jax.sharding import MeshConfig

ALL = 'all'


def add_device_flags(parser: argparse.ArgumentParser) -> None:
    """The number of devices and how they share the work."""
    group = parser.add_argument_group(
        'devices',
        'Started once per machine with the variables of launch/README.md, the processes share all '
        'of their devices, and the first one writes the files.',
    )
    _add_flags(group, 'the first N devices', '1; with --mesh as many as it names')


def add_local_device_flags(parser: argparse.ArgumentParser) -> None:
    """The same where each host generates images of its own, by default on all its devices."""
    group = parser.add_argument_group(
        'devices', 'Hosts take turns with the prompts; the devices of a host share its images.'
    )
    _add_flags(group, 'the first N devices of each host', ALL)


def _add_flags(group: Any, first: str, default: str) -> None:
    group.add_argument(
        '--devices',
        metavar='N',
        help=f'{first}, or {ALL}; each gets a share of the images (default: {default})',
    )
    group.add_argument(
        '--mesh',
        metavar='AXIS=N,…',
        help='how devices share the work, such as data=2,tensor=4: data splits the images, fsdp '
        'images and weights, tensor the weights alone; -1: what remains (default: data=-1)',
    )


def mesh_of(args: argparse.Namespace) -> 'Mesh | None':
    """The devices that the flags name; None without flags: the default device.

    Joins the other processes, if there are any.

    Raises:
      UserError: there are fewer devices, or the axes do not multiply to their number.
    """
    if args.devices is None and args.mesh is None:
        return None
    count = _count(args.devices)
    axes = None if args.mesh is None else _axes(args.mesh)
    from infinity_jax.runtime.distributed import join_processes

    join_processes()
    import jax

    mesh = _mesh_over(jax.devices(), count, axes, args.devices == ALL)
    if jax.process_count() > 1 and mesh.devices.size != jax.device_count():
        raise UserError(
            f'{jax.process_count()} processes have {jax.device_count()} devices, the flags name '
            f'{mesh.devices.size}; processes share all their devices: give --devices {ALL}'
        )
    return mesh


def local_mesh_of(args: argparse.Namespace) -> 'Mesh | None':
    """The devices of this host that the flags name, without flags all; None: a single one.

    Raises:
      UserError: as `mesh_of`.
    """
    count = _count(args.devices)
    axes = None if args.mesh is None else _axes(args.mesh)
    import jax

    devices, every = jax.local_devices(), args.devices in (None, ALL) and axes is None
    if every and len(devices) == 1:
        return None
    return _mesh_over(devices, count, axes, every or args.devices == ALL)


def _mesh_over(
    devices: Sequence[Any], count: int | None, axes: 'MeshConfig | None', every: bool
) -> 'Mesh':
    """A mesh over the first `count` devices; None: over every one, or as many as the axes name."""
    from infinity_jax.sharding import MeshConfig, make_mesh

    axes = MeshConfig() if axes is None else axes
    if count is None:
        count = len(devices) if every else _named_by(axes, len(devices))
    if count > len(devices):
        raise UserError(
            f'--devices and --mesh ask for {count} devices; there are {len(devices)} '
            f'({devices[0].platform}): name at most these'
        )
    return make_mesh(axes, devices[:count], '{} in --mesh')


def on_devices(run: Callable[[argparse.Namespace], None]) -> Callable[[argparse.Namespace], None]:
    """Wraps a command with these flags: an error ends a process at once that joined others.

    On a regular exit it would wait for them, and they for its share of the work.
    """

    @functools.wraps(run)
    def wrapped(args: argparse.Namespace) -> None:
        if args.devices is None and args.mesh is None:
            run(args)
            return
        from infinity_jax.runtime.exit_codes import one_line_endings

        with one_line_endings():
            run(args)

    return wrapped


def _count(text: str | None) -> int | None:
    """The number of devices, if a number is given."""
    if text is None or text == ALL:
        return None
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 2**20):
        raise UserError(f'--devices is {text!r}; wanted a number from 1, or {ALL}')
    return int(text)


def _axes(text: str) -> 'MeshConfig':
    """'data=2,tensor=4' as a `MeshConfig`, whose axis data is 1 unless it is named."""
    from infinity_jax.sharding import MeshConfig, check_axes

    names = [field.name for field in dataclasses.fields(MeshConfig)]
    sizes: dict[str, int] = {}
    for part in text.split(','):
        name, _, number = part.partition('=')
        digits = number.removeprefix('-')
        if name not in names or name in sizes or not (digits.isascii() and digits.isdigit()):
            raise UserError(
                f'--mesh is {text!r}; wanted numbers of the axes {", ".join(names)}, each once, '
                'such as data=2,tensor=4'
            )
        sizes[name] = int(number)
    check_axes(sizes, '--mesh ')
    return MeshConfig(**{'data': 1} | sizes)


def _named_by(axes: 'MeshConfig', available: int) -> int:
    """The devices that the axes multiply to; all where one of them is -1."""
    sizes = dataclasses.astuple(axes)
    return available if -1 in sizes else math.prod(sizes)
