"""Devices are found by the names that jax gives them."""

import pytest

from infinity_jax.runtime.accelerators import GIB, PEAKS, peak_of


@pytest.mark.parametrize(
    ('kind', 'name'),
    [
        ('TPU v4', 'v4'),
        ('TPU v5 lite', 'v5e'),
        ('TPU v5e', 'v5e'),
        ('TPU v5', 'v5p'),
        ('TPU v5p', 'v5p'),
        ('TPU v6 lite', 'v6e'),
        ('NVIDIA A100-SXM4-40GB', 'a100-40'),
        ('NVIDIA A100-SXM4-80GB', 'a100-80'),
        ('NVIDIA A100 80GB PCIe', 'a100-80'),
        ('NVIDIA H100 80GB HBM3', 'h100'),
        ('NVIDIA H100 PCIe', 'h100-pcie'),
        ('NVIDIA H200', 'h200'),
        ('NVIDIA L40S', 'l40s'),
        ('NVIDIA GeForce RTX 4090', 'rtx4090'),
        ('NVIDIA GeForce RTX 4070', 'rtx4070'),
        ('NVIDIA GeForce RTX 4060', 'rtx4060'),
        ('NVIDIA GeForce RTX 3060', 'rtx3060'),
        ('NVIDIA L4', 'l4'),
        ('Tesla T4', 't4'),
    ],
)
def test_known_devices(kind, name):
    assert peak_of(kind) is PEAKS[name]


@pytest.mark.parametrize(
    'kind',
    ['cpu', 'TPU v4 lite', 'TPU v9', 'NVIDIA RTX 4090 Laptop GPU', 'NVIDIA GH200 480GB', ''],
)
def test_others_have_no_peak(kind):
    assert peak_of(kind) is None


def test_units():
    assert PEAKS['v5e'].bf16_flops == 197e12 and PEAKS['v5e'].hbm_bytes == 16 * GIB
