"""TPU slices and GPUs by name, and devices to compile for without owning them."""

import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

import jax

from infinity_jax.errors import UserError, first_line
from infinity_jax.runtime.accelerators import PEAKS, DevicePeak, TpuChip, lacks_bfloat16
from infinity_jax.tools.plan.gpu_topology import (
    CARDS,
    GpuTopology,
    gpu_devices,
    parse_gpus,
    plugin,
)

# Without these, libtpu asks the cloud's metadata server about a TPU that does not exist, and only
# one process at a time can load it.
ENVIRONMENT = {'TPU_SKIP_MDS_QUERY': '1', 'ALLOW_MULTIPLE_LIBTPU_LOAD': 'true'}
HOST_CHIPS = (2, 2, 1)  # of a host by libtpu's default; other slices pass their own bounds
RING = 16  # from so many chips on, an axis of v5e and v6e is a ring; below, a line
CHIPS = {name: peak.tpu for name, peak in PEAKS.items() if peak.tpu}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice: the chip, and the number of chips along each axis of the torus."""

    chip: str
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        return f'{self.chip}:{"x".join(map(str, self.shape))}'

    @property
    def num_chips(self) -> int:
        return math.prod(self.shape)

    @property
    def peak(self) -> DevicePeak:
        return PEAKS[self.chip]

    @property
    def speed(self) -> TpuChip:
        return CHIPS[self.chip]

    @property
    def usable_bytes(self) -> int:
        """The part of a chip's memory that the compiler lets a program use."""
        return self.speed.usable_bytes

    @property
    def clock(self) -> float:
        """Cycles/s at which the published peak is reached."""
        return self.peak.bf16_flops / self.speed.flops_per_cycle

    def ring_bandwidth(self, axis: int, length: int) -> float:
        """Bytes/s that a chip receives in a collective along one axis, both ways together.

        `length` chips of the axis take part; only all of them form a ring.
        """
        joined = length == self.shape[axis] and (self.speed.axes == 3 or length >= RING)
        return self.speed.link_bandwidth * (2 if joined else 1)


Devices = Topology | GpuTopology


def parse_topology(text: str) -> Devices:
    """Parses a name such as 'v5e:16x16' or 'h100:8'.

    Raises:
      UserError: unknown chip, or a shape with another number of axes.
    """
    match = re.fullmatch(r'([\w-]+):(\d+(?:x\d+)*)', text)
    if not match:
        raise UserError(f'--topology {text!r}; wanted CHIP:SHAPE, for instance v5e:16x16 or h100:8')
    chip, shape = match[1], tuple(int(n) for n in match[2].split('x'))
    if chip in CARDS:
        return parse_gpus(text)
    if chip not in CHIPS:
        known = ', '.join((*CHIPS, *CARDS))
        raise UserError(f'--topology {text!r}: unknown chip {chip!r}; known: {known}')
    axes = CHIPS[chip].axes
    if len(shape) != axes or min(shape) < 1:
        example = 'x'.join(['4'] * axes)
        raise UserError(
            f'--topology {text!r}: {chip} slices have {axes} axes of 1 or more chips; write for '
            f'instance {chip}:{example}, or {chip}:{"x".join(["1"] * axes)} for one chip'
        )
    return Topology(chip, shape)


def can_compile(topology: Devices) -> bool:
    """Whether libtpu or the CUDA plugin, which contain the compilers, is installed."""
    if isinstance(topology, GpuTopology):
        return plugin() is not None
    return importlib.util.find_spec('libtpu') is not None


def lack_of_bfloat16(topology: Devices) -> str:
    """Why a card multiplies no bfloat16, as text; '' for other cards and TPUs."""
    return lacks_bfloat16(topology.speed.name) if isinstance(topology, GpuTopology) else ''


def prepare() -> None:
    """Sets up compiling without the devices; call it before jax starts a backend."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    jax.config.update('jax_platforms', 'cpu')


def devices_of(topology: Devices) -> list[Any]:
    """The chips as devices to compile for; nothing can run on them.

    Raises:
      UserError: the compiler does not support them.
    """
    if isinstance(topology, GpuTopology):
        return gpu_devices(topology)
    from jax.experimental import topologies

    options = {}
    padded = (*topology.shape, 1)[:3]
    if any(n % m for n, m in zip(padded, HOST_CHIPS, strict=True)):
        options['chips_per_host_bounds'] = padded  # all on one host
    try:
        found = topologies.get_topology_desc(platform='tpu', topology_name=topology.name, **options)
    except jax.errors.JaxRuntimeError as error:
        reason = first_line(error)
        raise UserError(
            f'--topology {topology.name}: libtpu refuses it ({reason}); name a slice that exists'
        ) from None
    return list(found.devices)
