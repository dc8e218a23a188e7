"""Published figures of accelerators: the peaks that throughput is compared with, and TPU links."""

import dataclasses
import re

GB, GIB = 10**9, 2**30


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
class DevicePeak:
    """One device as JAX counts them: a TPU chip (v4 and later) or a GPU.

    Attributes:
      bf16_flops: dense bfloat16 FLOP/s, without structured sparsity.
      hbm_bytes: memory on the package.
      tpu: further figures, of TPU chips that libtpu compiles for as single devices. v4 has none,
        since libtpu compiles for its cores.
    """

    bf16_flops: float
    hbm_bytes: int
    tpu: TpuChip | None = None


# Sources. FLOP/s, memory and its bandwidth: Cloud TPU's page of each version; NVIDIA's data sheets,
# half of the sparse figure. Links: Cloud TPU's inter-chip bandwidth, divided by the number of
# links. Matrix units: 4 of 128² on v5e, 8 of 128² on v5p, 4 of 256² on v6e. Usable bytes: the limit
# that libtpu 0.0.42 reports when it refuses a program.
PEAKS: dict[str, DevicePeak] = {
    'v4': DevicePeak(275e12, 32 * GIB),
    'v5e': DevicePeak(197e12, 16 * GIB, TpuChip(2, 819e9, 50e9, 2 * 4 * 128**2, int(15.75 * GIB))),
    'v5p': DevicePeak(
        459e12, 95 * GIB, TpuChip(3, 2765e9, 100e9, 2 * 8 * 128**2, int(95.74 * GIB))
    ),
    'v6e': DevicePeak(
        918e12, 32 * GIB, TpuChip(2, 1638e9, 100e9, 2 * 4 * 256**2, int(31.25 * GIB))
    ),
    'a100': DevicePeak(312e12, 40 * GB),
    'a100-80gb': DevicePeak(312e12, 80 * GB),
    'h100': DevicePeak(989.4e12, 80 * GB),
    'h100-pcie': DevicePeak(756e12, 80 * GB),
    'h200': DevicePeak(989.4e12, 141 * GB),
}
# Pattern of `jax.Device.device_kind` -> name above; the first match decides.
_KINDS = (
    (r'^TPU v4$', 'v4'),
    (r'^TPU v5 lite|^TPU v5e', 'v5e'),
    (r'^TPU v5p?$', 'v5p'),
    (r'^TPU v6 lite|^TPU v6e', 'v6e'),
    (r'A100.*80GB', 'a100-80gb'),
    (r'A100', 'a100'),
    (r'H100 PCIe', 'h100-pcie'),
    (r'H100.*80GB HBM3$', 'h100'),
    (r'H200', 'h200'),
)


def name_of(device_kind: str) -> str | None:
    """The name in `PEAKS` of a `jax.Device.device_kind`; None for a device that is not there."""
    return next((name for kind, name in _KINDS if re.search(kind, device_kind)), None)


def peak_of(device_kind: str) -> DevicePeak | None:
    """The peaks of `jax.devices()[0].device_kind`; None for a device that is not in the table."""
    name = name_of(device_kind)
    return None if name is None else PEAKS[name]
