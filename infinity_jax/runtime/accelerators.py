"""Published peaks of accelerators, against which throughput is held."""

import dataclasses
import re

GB, GIB = 10**9, 2**30


@dataclasses.dataclass(frozen=True)
class DevicePeak:
    """One device as jax counts them: a TPU chip (v4 and later) or a GPU.

    Attributes:
      bf16_flops: dense bfloat16 FLOP/s, without structured sparsity.
      hbm_bytes: memory on the package.
    """

    bf16_flops: float
    hbm_bytes: int


# From the vendors' specification pages (Cloud TPU; NVIDIA data sheets, half of the sparse figure).
PEAKS: dict[str, DevicePeak] = {
    'v4': DevicePeak(275e12, 32 * GIB),
    'v5e': DevicePeak(197e12, 16 * GIB),
    'v5p': DevicePeak(459e12, 95 * GIB),
    'v6e': DevicePeak(918e12, 32 * GIB),
    'a100': DevicePeak(312e12, 40 * GB),
    'a100-80gb': DevicePeak(312e12, 80 * GB),
    'h100': DevicePeak(989.4e12, 80 * GB),
    'h100-pcie': DevicePeak(756e12, 80 * GB),
    'h200': DevicePeak(989.4e12, 141 * GB),
}
# `jax.Device.device_kind` -> name above; the first pattern that is found decides.
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
    """The name above of a `jax.Device.device_kind`; None for a device that is not in the table."""
    return next((name for kind, name in _KINDS if re.search(kind, device_kind)), None)


def peak_of(device_kind: str) -> DevicePeak | None:
    """The peaks of `jax.devices()[0].device_kind`; None for a device that is not in the table."""
    return PEAKS.get(name_of(device_kind))
