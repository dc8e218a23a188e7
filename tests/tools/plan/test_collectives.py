"""Collectives in compiled programs: TPU text, and a program of eight CPU devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny import QUICK_COMPILE
from helpers.tpu_program import TEXT
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from infinity_jax.tools.plan.collectives import Collective, CollectiveTotal, collectives_of, totals
from infinity_jax.tools.plan.hlo_text import HloProgram

MATRIX = 2048 * 2048 * 2  # bytes


def test_an_asynchronous_collective_counts_once_a_turn():
    gathers = [c for c in collectives_of(HloProgram(TEXT)) if c.kind == 'all-gather']
    assert gathers == [Collective('all-gather', MATRIX, tuple(range(16)), True, 'body', 4)]


def test_a_fused_reduce_scatter_and_groups():
    found = {c.kind: c for c in collectives_of(HloProgram(TEXT))}
    assert found['reduce-scatter'].size == MATRIX
    assert found['reduce-scatter'].group == (0, 4, 8, 12)
    assert found['all-reduce'].group == (0, 1)
    assert not found['all-reduce'].overlapped


def test_totals_multiply_by_the_turns():
    assert totals(collectives_of(HloProgram(TEXT))) == {
        'all-gather': CollectiveTotal(4, 4 * MATRIX),
        'reduce-scatter': CollectiveTotal(4, 4 * MATRIX),
        'all-reduce': CollectiveTotal(1, 256 * 2048 * 2),
    }


@pytest.mark.parametrize(
    'groups, first',
    [
        ('[2,8]<=[16]', tuple(range(8))),
        ('{{3,1},{0,2}}', (3, 1)),
        ("mesh['a'=4,'b'=4] {'b'}", (0, 1, 2, 3)),
        ("mesh['a'=4,'b'=4] {'a'}", (0, 4, 8, 12)),
    ],
)
def test_ways_to_write_groups(groups, first):
    text = TEXT.replace('replica_groups={{0,1},{2,3}}', f'replica_groups={groups}')
    (one,) = (c for c in collectives_of(HloProgram(text)) if c.kind == 'all-reduce')
    assert one.group == first


def test_a_program_of_eight_devices():
    mesh = Mesh(np.array(jax.devices()).reshape(8), ('x',))
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (('x',), ()))

    def step(x, _):
        total = jax.lax.with_sharding_constraint(x.sum(0), whole)
        return jax.lax.with_sharding_constraint(x * total[None], split), None

    x = jax.ShapeDtypeStruct((16, 4), jnp.float32, sharding=split)
    lowered = jax.jit(lambda x: jax.lax.scan(step, x, length=6)[0]).lower(x)
    found = totals(collectives_of(HloProgram(lowered.compile(QUICK_COMPILE).as_text())))
    assert found == {'all-reduce': CollectiveTotal(6, 6 * 4 * 4)}


WRAPPED = """
%exchange (p: f32[1024]) -> f32[1024] {
  %p = f32[1024]{0} parameter(0)
  ROOT %all = f32[1024]{0} all-to-all(%p), replica_groups={{0,1,2,3}}, dimensions={0}
}

ENTRY %main (x: f32[1024]) -> f32[1024] {
  %x = f32[1024]{0} parameter(0)
  %start = ((f32[1024]{0}), f32[1024]{0}, u32[]) async-start(%x), calls=%exchange
  ROOT %done = f32[1024]{0} async-done(%start)
}
"""


def test_a_collective_that_is_started_overlaps_with_the_computation_that_starts_it():
    wanted = Collective('all-to-all', 4 * 4096, (0, 1, 2, 3), True, 'main', 1)
    assert collectives_of(HloProgram(WRAPPED)) == [wanted]
    started = """
ENTRY %main (x: f32[1024]) -> f32[1024] {
  %x = f32[1024]{0} parameter(0)
  %s = ((f32[1024]{0}), f32[1024]{0}, u32[]) all-to-all-start(%x), replica_groups={{0,1,2,3}}
  ROOT %done = f32[1024]{0} all-to-all-done(%s)
}
"""
    assert collectives_of(HloProgram(started)) == [wanted]
