"""Bits and indices that keep their value when the features of images move a little."""

import json

import jax.numpy as jnp
import pytest

from infinity_jax.cli import main
from infinity_jax.tools.evaluation.perturbation import kept_shares


@pytest.mark.numeric
def test_an_index_is_kept_if_all_of_its_bits_are():
    before = (jnp.zeros((1, 1, 1, 4), bool), jnp.zeros((1, 2, 1, 4), bool))
    after = (before[0], before[1].at[0, 1, 0, 2].set(True))
    assert kept_shares(before, after) == {
        'bits': pytest.approx(11 / 12),
        'indices': pytest.approx(2 / 3),
        'bits_per_scale': [1.0, pytest.approx(7 / 8)],
        'indices_per_scale': [1.0, 0.5],
    }


@pytest.mark.numeric
def test_bits_of_the_demo_move_less_than_its_indices(tmp_path, capsys):
    main(['evaluate', 'perturbation', '--count', '2', '--out', str(tmp_path)])
    results = json.loads((tmp_path / 'perturbation.json').read_text())
    shares = list(results['strengths'].values())
    assert results['bits'] == 32 and len(shares) == 4
    assert all(each['indices'] < each['bits'] for each in shares)
    assert [s['bits'] for s in shares] == sorted((s['bits'] for s in shares), reverse=True)
    assert '2 images, codes of 32 bits' in capsys.readouterr().out


def test_counts_are_positive(capsys):
    with pytest.raises(SystemExit):
        main(['evaluate', 'perturbation', '--count', '0'])
    assert 'count is 0; wanted 1 or more images' in capsys.readouterr().err
