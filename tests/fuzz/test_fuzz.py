"""A few malformed inputs of each kind; `python tests/fuzz/run.py --count 400` makes many."""

import time

import pytest
from fuzz import harness
from fuzz.harness import BUGS, Case, outcome_of, run_cases, table
from fuzz.kinds import FUZZERS

from infinity_jax.errors import UserError

COUNT = 20


@pytest.mark.parametrize('kind', FUZZERS)
def test_malformed_inputs_are_refused_in_one_line_or_read_rightly(kind, tmp_path, monkeypatch):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    base = tmp_path / 'base'
    base.mkdir()
    outcomes = list(run_cases(kind, FUZZERS[kind](base), range(COUNT), 0, tmp_path))
    assert len({outcome.name for outcome in outcomes}) > COUNT // 2
    assert not [outcome for outcome in outcomes if outcome.verdict in BUGS]


def refuse(text):
    raise UserError(text)


@pytest.mark.parametrize(
    ('run', 'verdict'),
    [
        (lambda: refuse('file x: field y is 1; wanted 2'), 'refused'),
        (lambda: refuse(''), 'unclear'),
        (lambda: 1 / 0, 'traceback'),
        (lambda: exit(3), 'traceback'),
        (lambda: time.sleep(9), 'hang'),
        (lambda: 'other', 'silent'),
        (lambda: 'same', 'accepted'),
        (lambda: 'partly', 'reported'),
    ],
)
def test_each_kind_of_ending_is_recognised(run, verdict, monkeypatch):
    monkeypatch.setattr(harness, 'TIME_LIMIT', 0.1)
    judge = lambda result: 'another result' if result == 'other' else ''
    assert outcome_of(Case('x', run, judge, lambda result: result == 'partly'))[0] == verdict


def test_a_case_can_be_repeated(tmp_path):
    (tmp_path / 'base').mkdir()
    fuzzer = FUZZERS['tar'](tmp_path / 'base')
    first = [list(run_cases('tar', fuzzer, [n], 3, tmp_path))[0] for n in range(4)]
    assert first == list(run_cases('tar', fuzzer, range(4), 3, tmp_path))
    assert '| tar | 4 |' in table({'tar': first})
