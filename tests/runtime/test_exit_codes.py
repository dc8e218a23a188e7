"""However a run ends, it says so in one line and with a code that launchers understand."""

import os

import jax
import pytest

from infinity_jax.errors import UserError
from infinity_jax.runtime.exit_codes import one_line_endings
from infinity_jax.runtime.preemption import Preempted

LOST = ValueError('UNKNOWN: Gloo all-reduce failed: Connection reset by peer')


class Left(Exception):
    """Stands for os._exit."""


@pytest.fixture
def leaves_at_once(monkeypatch):
    """A run of several processes, where a failed one must not wait for the others."""

    def leave(code):
        raise Left(code)

    monkeypatch.setattr(jax.distributed, 'is_initialized', lambda: True)
    monkeypatch.setattr(os, '_exit', leave)


@pytest.mark.parametrize(
    ('error', 'code', 'line'),
    [
        (UserError('no such file'), 2, 'error: no such file'),
        (KeyboardInterrupt(), 130, 'stopped; the same command goes on from the last checkpoint'),
        (Preempted('stopped by SIGTERM'), 143, 'stopped by SIGTERM'),
    ],
)
def test_a_run_of_one_process(capsys, error, code, line):
    with pytest.raises(SystemExit) as caught, one_line_endings():
        raise error
    assert caught.value.code == code
    assert capsys.readouterr().err == line + '\n'


def test_a_mistake_of_ours_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), one_line_endings():
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ('error', 'code', 'line'),
    [
        (UserError('the disk is full'), 2, 'error: the disk is full'),
        (KeyboardInterrupt(), 130, 'stopped; '),
        (LOST, 75, 'error: a device or another process of this run failed'),
        (ZeroDivisionError(), 1, 'error: this process failed'),
        (RuntimeError('RESOURCE_EXHAUSTED: out of memory'), 1, 'error: this process failed'),
    ],
)
def test_one_of_several_processes_leaves_at_once(capsys, leaves_at_once, error, code, line):
    with pytest.raises(Left) as caught, one_line_endings():
        raise error
    assert caught.value.args == (code,)
    assert capsys.readouterr().err.splitlines()[-1].startswith(line)


def test_a_notice_ends_all_processes_in_step(leaves_at_once):
    with pytest.raises(SystemExit) as caught, one_line_endings():
        raise Preempted('stopped by SIGTERM')
    assert caught.value.code == 143
