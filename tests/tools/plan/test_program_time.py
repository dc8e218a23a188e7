"""Estimated times: cycles, kernels, links, and what hides behind what."""

import numpy as np
import pytest
from helpers.tpu_program import TEXT

from infinity_jax.tools.plan.collectives import Collective
from infinity_jax.tools.plan.hlo_text import HloProgram
from infinity_jax.tools.plan.kernel_flops import splash_flops
from infinity_jax.tools.plan.program_time import ProgramTime, collective_seconds, estimate_time
from infinity_jax.tools.plan.topology import parse_topology

SLICE = parse_topology('v5e:4x4')
PLACES = [(i // 4, i % 4, 0) for i in range(16)]
GB = 10**9


def estimate(text=TEXT, flops=lambda name, operands: 197e12):
    return estimate_time(HloProgram(text), SLICE, PLACES, flops)


def test_cycles_count_with_their_loop():
    assert SLICE.clock == pytest.approx(1.503e9, rel=1e-3)
    assert estimate().estimated == pytest.approx((4 * 45_000 + 150_000) / SLICE.clock)


def test_kernels_run_at_the_peak_and_copies_at_the_memory():
    time = estimate()
    assert time.kernels == pytest.approx(4 * 1.0)
    assert time.moved >= 2 * 256 * 2048 * 2 / 819e9


@pytest.mark.parametrize(
    'line, size',
    [
        ('%part = bf16[1,8]{1,0} dynamic-slice(%whole, %at), dynamic_slice_sizes={1,8}', 2 * 16),
        ('%new = bf16[64,8]{1,0} dynamic-update-slice(%whole, %row, %at, %at)', 2 * 16),
        ('%copy.1 = bf16[64,8]{1,0} copy(%whole)', 2 * 64 * 16),
    ],
)
def test_a_part_of_an_array_costs_no_more_than_the_part(line, size):
    text = f"""
ENTRY %main (whole: bf16[64,8], row: bf16[1,8], at: s32[]) -> bf16[64,8] {{
  %whole = bf16[64,8]{{1,0}} parameter(0)
  %row = bf16[1,8]{{1,0}} parameter(1)
  %at = s32[] parameter(2)
  {line}
}}
"""
    assert estimate(text).moved == pytest.approx(size / 819e9)


def test_overlapped_collectives_cost_only_what_sticks_out():
    behind_kernels, alone = estimate(), estimate(flops=lambda name, operands: 0.0)
    gathered = 4 * (15 / 16) * 2048 * 2048 * 2 / (2 * 50e9)
    assert behind_kernels.hidden == pytest.approx(gathered)
    assert alone.exposed > behind_kernels.exposed
    assert alone.hidden + alone.exposed == pytest.approx(
        behind_kernels.hidden + behind_kernels.exposed
    )


@pytest.mark.parametrize(
    'kind, seconds',
    [
        ('all-gather', 0.75 / 50), ('all-reduce', 2 * 0.75 / 50), ('all-to-all', 0.75 / 200),
        ('reduce-scatter', 0.75 / 50),
    ],
)  # fmt: skip
def test_four_chips_of_a_line(kind, seconds):
    one = Collective(kind, GB, (0, 1, 2, 3), False, 'main', 1)
    assert collective_seconds(one, SLICE, PLACES) == pytest.approx(seconds)


def test_rings_are_joined_in_large_slices_and_all_axes_work():
    whole = Collective('all-gather', GB, (), False, 'main', 1)
    assert collective_seconds(whole, SLICE, PLACES) == pytest.approx(15 / 16 / 100)
    large = parse_topology('v5e:16x16')
    places = [(i // 16, i % 16, 0) for i in range(256)]
    assert collective_seconds(whole, large, places) == pytest.approx(255 / 256 / 200)


@pytest.mark.parametrize('name, links', [('v5e:16x16', 1 + 2), ('v5p:4x4x8', 1 + 2 + 2)])
def test_half_of_a_ring_is_none(name, links):
    topology = parse_topology(name)
    places = sorted(np.ndindex(topology.shape), key=lambda place: place[-1])
    one = Collective('all-gather', GB, tuple(range(topology.num_chips // 2)), False, 'main', 1)
    link = topology.speed.link_bandwidth
    wanted = (1 - 1 / len(one.group)) * GB / (links * link)
    assert collective_seconds(one, topology, places) == pytest.approx(wanted)


def test_splash_counts_its_products():
    arrays = [('s32', (4, 9)), *[('bf16', (2, 16, 1024, 128))] * 3]
    count = splash_flops(lambda queries, keys, columns: columns / keys / 2)
    once = 2 * 2 * 16 * 1024 * 1024 * 128
    assert count('splash_mha_fwd_residuals', arrays) == 2 * once / 16
    assert count('splash_mha_dq_segmented_no_residuals', arrays) == 3 * once
    # One kernel for all gradients, its blocks as wide as all keys.
    assert count('splash_mha_dkv_no_residuals', arrays) == 5 * once / 2
    assert count('another', arrays) == 0
    # A prime number of blocks leaves two kernels.
    arrays = [('bf16', (1, 1, 23 * 512, 128))] * 2
    assert count('splash_mha_dkv', arrays) == 4 * 2 * (23 * 512) ** 2 * 128 / 23 / 2


def test_times_add_and_scale_by_part():
    one = ProgramTime(*np.arange(5.0))
    assert one + one == one * 2
    assert (one - one).total == 0
