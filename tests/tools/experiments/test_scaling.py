"""Power laws of loss and size, and correlations, of an experiment's runs."""

import numpy as np
import pytest

from infinity_jax.errors import UserError
from infinity_jax.tools.experiments.scaling import fit_scaling, power_law, scaling_lines


@pytest.mark.numeric
def test_a_power_law_is_found_again():
    sizes = np.array([1e5, 1e6, 5e6])
    law = power_law(sizes, 3 * sizes**-0.125)
    assert law['factor'] == pytest.approx(3) and law['exponent'] == pytest.approx(-0.125)
    assert law['r_squared'] == pytest.approx(1) and law['standard_error'] < 1e-6


def summaries(sizes, qualities):
    """Results of one seed per size, whose loss is 2 · size^-0.5."""
    return {
        str(size): {
            'loss': {'values': [2 * size**-0.5]},
            'parameters': {'values': [size]},
            'compute': {'values': [100 * size]},
            'emoji_trained': {'values': [quality]},
            'emoji_held_out': {'values': [0.5]},
        }
        for size, quality in zip(sizes, qualities, strict=True)
    }


@pytest.mark.numeric
def test_laws_and_correlations_of_an_experiment():
    sizes = (1.0, 4.0, 16.0)  # losses 2, 1, 0.5
    fit = fit_scaling(summaries(sizes, (0.1, 0.4, 0.55)))
    assert fit['runs'] == 3
    assert fit['laws']['parameters']['exponent'] == pytest.approx(-0.5)
    assert fit['laws']['compute']['factor'] == pytest.approx(20)
    assert fit['correlations']['emoji_trained'] == pytest.approx(-1)
    assert fit['correlations']['emoji_held_out'] is None
    lines = scaling_lines(fit)
    assert lines[0].startswith('loss = 2 · parameters^-0.5000 (± 0.0000, R² 1.000, 3 runs)')
    assert lines[-1] == 'correlation of loss and emoji_held_out: none, one of them is constant'
    assert fit_scaling(summaries(sizes[:2], (0, 1))) is None
    assert 'no power law yet' in scaling_lines(None)[0]
    with pytest.raises(UserError, match='loss of a run is 0; a power law wants positive'):
        fit_scaling({**summaries(sizes, sizes), 'x': {**summaries([1.0], [1])['1.0'],
                     'loss': {'values': [0.0]}}})  # fmt: skip
