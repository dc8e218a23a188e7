"""Compiled HLO text, read: loops, computations, shapes."""

import jax
import jax.numpy as jnp
import pytest
from helpers.tiny import QUICK_COMPILE
from helpers.tpu_program import TEXT

from infinity_jax.tools.plan.hlo_text import HloProgram, arrays_of, num_bytes


def compiled_text(function, *args):
    return jax.jit(function).lower(*args).compile(QUICK_COMPILE).as_text()


def runs(text, opcode):
    return [e.times for e in HloProgram(text).executed() if e.instruction.opcode == opcode]


def test_a_loop_counts_as_often_as_it_turns():
    program = HloProgram(TEXT)
    times = {e.instruction.name: e.times for e in program.executed()}
    assert times['splash_mha_fwd_residuals.1'] == times['fusion.24'] == 4
    assert times['fusion.10'] == 1
    assert 'all-gather.23' not in times  # inside a fusion
    assert program.entry == 'main.6_spmd' and not program.unknown_loops


def test_a_bound_that_is_not_in_the_text_is_reported():
    program = HloProgram(TEXT.replace('constant(4)', 'parameter(1)'))
    assert {e.times for e in program.executed()} == {1}
    assert program.unknown_loops == ['while.30']


def test_nested_scans_of_this_compiler():
    def inner(x, _):
        return jnp.sin(x @ x), None

    def outer(x, _):
        return jax.lax.scan(inner, x, length=5)[0], None

    text = compiled_text(lambda x: jax.lax.scan(outer, x, length=3)[0], jnp.ones((4, 4)))
    assert runs(text, 'while') == [1, 3]
    assert max(e.times for e in HloProgram(text).executed()) == 15


def test_operands_and_shapes():
    start = next(x for x in HloProgram(TEXT).computations['body'] if x.name == 'start')
    assert start.operands == ['wide.param.2']
    assert start.callees == ['starting']
    assert start.arrays == [('bf16', (1, 128, 2048)), ('bf16', (1, 2048, 2048)), ('u32', ())]


@pytest.mark.parametrize(
    'shape, size',
    [('bf16[2,3]{1,0:T(8,128)(2,1)}', 12), ('pred[5]', 5), ('s4[3]', 2), ('f8e4m3fn[7]', 7)],
)
def test_bytes(shape, size):
    (array,) = arrays_of(shape)
    assert num_bytes(*array) == size
