"""Published figures of accelerators: peaks, memory and links, for throughput and for plans."""

import dataclasses
import re
from collections.abc import Iterable
from typing import Any

GIB, MIB = 2**30, 2**20
BFLOAT16_CAPABILITY = (8, 0)  # Ampere


@dataclasses.dataclass(frozen=True)
class TpuChip:
    """Further figures of a TPU chip, for planning programs without owning one.

    Attributes:
      axes: of the torus that chips form.
      hbm_bandwidth: bytes/s.
      link_bandwidth: bytes/s of one link in one direction; there are two links per axis.
      flops_per_cycle: bfloat16, of all matrix units of the chip; gives the clock rate.
      usable_bytes: the part of its memory that the compiler lets a program use.
    """

    axes: int
    hbm_bandwidth: float
    link_bandwidth: float
    flops_per_cycle: int
    usable_bytes: int


@dataclasses.dataclass(frozen=True)
class GpuCard:
    """Further figures of an NVIDIA card, for planning programs without owning one.

    Attributes:
      name: as the driver gives it.
      capability: compute capability, (major, minor).
      tf32_flops, fp32_flops: dense FLOP/s; TF32 is 0 where the card has none.
      fp16_flops: dense FLOP/s with sums in float32; 0: as in bfloat16.
      memory_bandwidth: bytes/s.
      link_bandwidth: bytes/s to other cards of the host, in one direction.
      network_bandwidth: bytes/s per card to other hosts, in one direction.
      multiprocessors, fp32_units: units per multiprocessor give the compiler the card's shape.
      clock_ghz: boost clock.
      l2_bytes: of the second-level cache.
      shared_kib: shared memory of a multiprocessor that one block may use.
      threads: most threads on a multiprocessor.
    """

    name: str
    capability: tuple[int, int]
    tf32_flops: float
    fp32_flops: float
    memory_bandwidth: float
    link_bandwidth: float
    network_bandwidth: float
    multiprocessors: int
    fp32_units: int
    clock_ghz: float
    l2_bytes: int
    shared_kib: int
    threads: int
    fp16_flops: float = 0.0


@dataclasses.dataclass(frozen=True)
class DevicePeak:
    """One device as JAX counts them: a TPU chip (v4 and later) or a GPU.

    Attributes:
      bf16_flops: dense bfloat16 FLOP/s, without structured sparsity; of a card without bfloat16
        units, that of float32, to which the compiler converts.
      hbm_bytes: memory on the package; of a GPU what CUDA reports of it, see `PEAKS`.
      tpu: further figures, of TPU chips that libtpu compiles for as single devices. v4 has none,
        since libtpu compiles for its cores.
      gpu: further figures, of cards that the CUDA plugin compiles for.
    """

    bf16_flops: float
    hbm_bytes: int
    tpu: TpuChip | None = None
    gpu: GpuCard | None = None


# An H100 and an H200 differ in memory alone, the two A100 likewise.
_HOPPER = GpuCard(
    'NVIDIA H100 80GB HBM3', (9, 0), 494.7e12, 66.9e12, 3.35e12, 450e9, 50e9,
    multiprocessors=132, fp32_units=128, clock_ghz=1.98, l2_bytes=50 * MIB, shared_kib=227,
    threads=2048,
)  # fmt: skip
_AMPERE = GpuCard(
    'NVIDIA A100-SXM4-40GB', (8, 0), 156e12, 19.5e12, 1.555e12, 300e9, 25e9,
    multiprocessors=108, fp32_units=64, clock_ghz=1.41, l2_bytes=40 * MIB, shared_kib=163,
    threads=2048,
)  # fmt: skip
_L40S = GpuCard(
    'NVIDIA L40S', (8, 9), 183e12, 91.6e12, 864e9, 32e9, 12.5e9,
    multiprocessors=142, fp32_units=128, clock_ghz=2.52, l2_bytes=96 * MIB, shared_kib=99,
    threads=1536,
)  # fmt: skip
_RTX4090 = GpuCard(
    'NVIDIA GeForce RTX 4090', (8, 9), 82.6e12, 82.6e12, 1008e9, 32e9, 12.5e9,
    multiprocessors=128, fp32_units=128, clock_ghz=2.52, l2_bytes=72 * MIB, shared_kib=99,
    threads=1536,
)  # fmt: skip
_RTX4070 = GpuCard(
    'NVIDIA GeForce RTX 4070', (8, 9), 29.1e12, 29.1e12, 504e9, 32e9, 12.5e9,
    multiprocessors=46, fp32_units=128, clock_ghz=2.475, l2_bytes=36 * MIB, shared_kib=99,
    threads=1536,
)  # fmt: skip
_RTX4060 = GpuCard(
    'NVIDIA GeForce RTX 4060', (8, 9), 15.1e12, 15.1e12, 272e9, 16e9, 12.5e9,
    multiprocessors=24, fp32_units=128, clock_ghz=2.46, l2_bytes=24 * MIB, shared_kib=99,
    threads=1536,
)  # fmt: skip
_RTX3060 = GpuCard(
    'NVIDIA GeForce RTX 3060', (8, 6), 12.7e12, 12.7e12, 360e9, 32e9, 12.5e9,
    multiprocessors=28, fp32_units=128, clock_ghz=1.777, l2_bytes=3 * MIB, shared_kib=99,
    threads=1536,
)  # fmt: skip
_L4 = GpuCard(
    'NVIDIA L4', (8, 9), 60e12, 30.3e12, 300e9, 32e9, 12.5e9,
    multiprocessors=58, fp32_units=128, clock_ghz=2.04, l2_bytes=48 * MIB, shared_kib=99,
    threads=1536,
)  # fmt: skip
_T4 = GpuCard(
    'Tesla T4', (7, 5), 0.0, 8.1e12, 320e9, 16e9, 12.5e9,
    multiprocessors=40, fp32_units=64, clock_ghz=1.59, l2_bytes=4 * MIB, shared_kib=64,
    threads=1024, fp16_flops=65e12,
)  # fmt: skip

# Sources. FLOP/s, memory and its bandwidth: Cloud TPU's page of each version; NVIDIA's data sheets
# and white papers of each architecture (Turing, Ampere, Ada, Hopper), half of a figure that counts
# sparsity. TPU links: Cloud TPU's inter-chip bandwidth, divided by the number of links. Matrix
# units: 4 of 128² on v5e, 8 of 128² on v5p, 4 of 256² on v6e. Usable bytes: the limit that
# libtpu 0.0.42 reports when it refuses a program. GPU links: NVLink's total, halved; else a PCIe
# slot of 16 lanes, or of 8 on the RTX 4060. Networks: one 400 Gb/s port per H100 or H200, 200 per
# A100, else 100. GeForce: NVIDIA's page of each card and its Ada and GA102 white papers, by which a
# bfloat16 product summed in float32 takes half the time of a float32 one, and a TF32 one as long.
# Memory of a GPU: the total capacity that CUDA reports, as PyTorch's messages of too little memory
# have it in public issues and logs. It varies with the driver: the least that was found is taken.
PEAKS: dict[str, DevicePeak] = {
    'v4': DevicePeak(275e12, 32 * GIB),
    'v5e': DevicePeak(197e12, 16 * GIB, TpuChip(2, 819e9, 50e9, 2 * 4 * 128**2, int(15.75 * GIB))),
    'v5p': DevicePeak(
        459e12, 95 * GIB, TpuChip(3, 2765e9, 100e9, 2 * 8 * 128**2, int(95.74 * GIB))
    ),
    'v6e': DevicePeak(
        918e12, 32 * GIB, TpuChip(2, 1638e9, 100e9, 2 * 4 * 256**2, int(31.25 * GIB))
    ),
    'a100-40': DevicePeak(312e12, int(39.38 * GIB), gpu=_AMPERE),
    'a100-80': DevicePeak(
        312e12,
        int(79.15 * GIB),
        gpu=dataclasses.replace(_AMPERE, name='NVIDIA A100-SXM4-80GB', memory_bandwidth=2.039e12),
    ),
    'h100': DevicePeak(989.4e12, int(79.1 * GIB), gpu=_HOPPER),
    'h100-pcie': DevicePeak(756e12, int(79.1 * GIB)),
    'h200': DevicePeak(
        989.4e12,
        int(139.72 * GIB),
        gpu=dataclasses.replace(_HOPPER, name='NVIDIA H200', memory_bandwidth=4.8e12),
    ),
    'l40s': DevicePeak(362e12, int(44.39 * GIB), gpu=_L40S),
    'rtx4090': DevicePeak(165.2e12, int(23.52 * GIB), gpu=_RTX4090),
    'rtx4070': DevicePeak(58.3e12, int(11.56 * GIB), gpu=_RTX4070),
    'rtx4060': DevicePeak(30.2e12, int(7.6 * GIB), gpu=_RTX4060),
    'rtx3060': DevicePeak(25.5e12, int(11.63 * GIB), gpu=_RTX3060),
    'l4': DevicePeak(121e12, int(21.96 * GIB), gpu=_L4),
    't4': DevicePeak(8.1e12, int(14.56 * GIB), gpu=_T4),
}
# Pattern of `jax.Device.device_kind` -> name above; the first match decides.
_KINDS = (
    (r'^TPU v4$', 'v4'),
    (r'^TPU v5 lite|^TPU v5e', 'v5e'),
    (r'^TPU v5p?$', 'v5p'),
    (r'^TPU v6 lite|^TPU v6e', 'v6e'),
    (r'A100.*80GB', 'a100-80'),
    (r'A100', 'a100-40'),
    (r'H100 PCIe', 'h100-pcie'),
    (r'H100.*80GB HBM3$', 'h100'),
    (r'\bH200', 'h200'),
    (r'L40S', 'l40s'),
    (r'RTX 4090$', 'rtx4090'),
    (r'RTX 4070$', 'rtx4070'),
    (r'RTX 4060$', 'rtx4060'),
    (r'RTX 3060$', 'rtx3060'),
    (r'NVIDIA L4$', 'l4'),
    (r'T4$', 't4'),
)


def name_of(device_kind: str) -> str | None:
    """The name in `PEAKS` of a `jax.Device.device_kind`; None for a device that is not there."""
    return next((name for kind, name in _KINDS if re.search(kind, device_kind)), None)


def capability_of(device_kind: str, devices: Iterable[Any]) -> tuple[int, int] | None:
    """Compute capability of an NVIDIA card; None for other devices, and if it is not known.

    Args:
      device_kind: of a `jax.Device`.
      devices: of this machine; a card that is not among them is looked up in the table.
    """
    for device in devices:
        text = getattr(device, 'compute_capability', '')
        if device.device_kind == device_kind and re.fullmatch(r'\d+\.\d+', text):
            major, minor = map(int, text.split('.'))
            return major, minor
    peak = peak_of(device_kind)
    return peak.gpu.capability if peak and peak.gpu else None


def lacks_bfloat16(device_kind: str, devices: Iterable[Any] = ()) -> str:
    """Why an NVIDIA card multiplies no bfloat16, as text; '' for other and unknown devices.

    Args:
      device_kind, devices: see `capability_of`.
    """
    capability = capability_of(device_kind, devices)
    if capability is None or capability >= BFLOAT16_CAPABILITY:
        return ''
    have, wanted = ('.'.join(map(str, each)) for each in (capability, BFLOAT16_CAPABILITY))
    return (
        f'{device_kind} has compute capability {have} and bfloat16 products need {wanted} '
        '(Ampere) or newer'
    )


def peak_of(device_kind: str) -> DevicePeak | None:
    """The peaks of `jax.devices()[0].device_kind`; None for a device that is not in the table."""
    name = name_of(device_kind)
    return None if name is None else PEAKS[name]
