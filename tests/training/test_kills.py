"""Short runs of the tools in tests/kills: killed commands, and damaged checkpoints."""

from kills import convert, damage, kill


def test_a_killed_run_ends_as_an_undisturbed_one(capsys):
    assert kill.main(['--count', '1', '--seed', '3']) == 0, capsys.readouterr().out
    assert '1 kills in 1 runs, 0 of them differ' in capsys.readouterr().out


def test_damaged_checkpoints_never_give_other_numbers(capsys):
    assert damage.main(['--count', '30']) == 0, capsys.readouterr().out
    assert 'flipped bit: fell back, with a line' in capsys.readouterr().out


def test_a_killed_conversion_is_completed_by_the_next(capsys):
    assert convert.main(['--count', '1', '--seed', '30']) == 0, capsys.readouterr().out
    assert '1 kills in 1 runs, 0 of them differ' in capsys.readouterr().out
