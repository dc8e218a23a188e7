"""NVIDIA cards by name, and devices to compile for without owning one.

The CUDA plugin of jax has the whole compiler and needs neither a card nor a driver for it: a card
is described to it by a text. No algorithm is measured then, so that choices among kernels may
differ from those on a real card; shapes, precisions, fusions, collectives and memory do not.
"""

import dataclasses
import functools
import importlib.util
import re
from typing import Any

import jax

from infinity_jax.errors import UserError, first_line
from infinity_jax.runtime.accelerators import PEAKS, DevicePeak, GpuCard
from infinity_jax.runtime.host_memory import GPU_SHARE

CARDS = {name: peak.gpu for name, peak in PEAKS.items() if peak.gpu}
PLUGINS = ('xla_cuda13', 'xla_cuda12')
INSTALL = (
    'pip install --no-deps jax-cuda13-pjrt=={version} jax-cuda13-plugin=={version} nvidia-cuda-nvcc'
)
CUDNN = 91100  # the version that programs are compiled for where cuDNN is not installed


@dataclasses.dataclass(frozen=True)
class GpuTopology:
    """Hosts with the same number of equal cards."""

    card: str
    hosts: int
    cards_per_host: int

    @property
    def name(self) -> str:
        shape = f'{self.hosts}x{self.cards_per_host}' if self.hosts > 1 else self.cards_per_host
        return f'{self.card}:{shape}'

    @property
    def num_chips(self) -> int:
        return self.hosts * self.cards_per_host

    @property
    def peak(self) -> DevicePeak:
        return PEAKS[self.card]

    @property
    def speed(self) -> GpuCard:
        return CARDS[self.card]

    @property
    def usable_bytes(self) -> int:
        """The part of a card's memory that commands let JAX reserve."""
        return int(GPU_SHARE * self.peak.hbm_bytes)


def parse_gpus(text: str) -> GpuTopology:
    """Parses a name such as 'h100:8' or, for two hosts, 'h100:2x8'.

    Raises:
      UserError: the number of cards is missing or wrong.
    """
    card, _, shape = text.partition(':')
    match = re.fullmatch(r'(?:(\d+)x)?(\d+)', shape)
    if not match or not int(match[2]) or match[1] == '0':
        raise UserError(
            f'--topology {text!r}; wanted CARD:CARDS or CARD:HOSTSxCARDS, for instance {card}:1 or '
            f'{card}:2x8'
        )
    return GpuTopology(card, int(match[1] or 1), int(match[2]))


def lacks_tf32(topology: object) -> bool:
    """Whether these are cards that multiply float32 as such, without fewer bits of mantissa."""
    return isinstance(topology, GpuTopology) and not topology.speed.tf32_flops


def plugin() -> str | None:
    """The installed CUDA plugin of jax, which contains the compiler; None without one."""
    if importlib.util.find_spec('jax_plugins') is None:
        return None
    found = (name for name in PLUGINS if importlib.util.find_spec(f'jax_plugins.{name}'))
    return next(found, None)


def install_line() -> str:
    """The command that installs the compiler for the present jax."""
    return INSTALL.format(version=jax.__version__)


def gpu_devices(topology: GpuTopology) -> list[Any]:
    """The cards as devices to compile for; nothing can run on them.

    Raises:
      UserError: the plugin does not know the card.
    """
    from jax.experimental import topologies

    allow_missing_cudnn()
    shape = f'{topology.hosts}x{topology.cards_per_host}x1'
    try:
        found = topologies.get_topology_desc(
            topology.speed.name,
            platform='cuda',
            target_config=target_config(topology.peak, topology.speed),
            topology=shape,
        )
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f'--topology {topology.name}: the CUDA plugin refuses it ({first_line(error)}); '
            f'install the plugin of this jax: {install_line()}'
        ) from None
    return list(found.devices)


def target_config(peak: DevicePeak, card: GpuCard) -> str:
    """The card as XLA's GpuTargetConfigProto in text form."""
    major, minor = card.capability
    info = {
        'threads_per_block_limit': 1024,
        'threads_per_warp': 32,
        'shared_memory_per_block': 48 * 2**10,
        'shared_memory_per_core': (card.shared_kib + 1) * 2**10,
        'shared_memory_per_block_optin': card.shared_kib * 2**10,
        'threads_per_core_limit': card.threads,
        'core_count': card.multiprocessors,
        'fpus_per_core': card.fp32_units,
        'block_dim_limit_x': 2**31 - 1,
        'block_dim_limit_y': 2**16 - 1,
        'block_dim_limit_z': 2**16 - 1,
        'memory_bandwidth': int(card.memory_bandwidth),
        'l2_cache_size': card.l2_bytes,
        'clock_rate_ghz': card.clock_ghz,
        'device_memory_size': peak.hbm_bytes,
        'registers_per_core_limit': 2**16,
        'registers_per_block_limit': 2**16,
    }
    fields = ' '.join(f'{name}: {value}' for name, value in info.items())
    return (
        f'gpu_device_info {{ {fields} cuda_compute_capability {{ major: {major} minor: {minor} }} '
        '} platform_name: "CUDA" dnn_version_info { major: 9 minor: 11 patch: 0 } '
        f'runtime_version {{ major: 13 }} device_description_str: "{card.name}"'
    )


@functools.cache  # once per process
def allow_missing_cudnn() -> None:
    """Lets cuDNN attention be traced where cuDNN is not installed; nothing is run."""
    from jax._src.cudnn import fused_attention_stablehlo as attention

    installed = attention.check_cudnn_version

    def version() -> int:
        try:
            return installed()
        except RuntimeError:
            return CUDNN

    attention.check_cudnn_version = version
