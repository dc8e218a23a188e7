"""Power laws of the held-out loss over parameters and compute, and its correlation with quality.

The paper (4.4) reports such laws for validation loss, and a correlation of −0.98 with GenEval.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from infinity_jax.errors import UserError

LOSS, SIZES, QUALITIES = 'loss', ('parameters', 'compute'), ('emoji_trained', 'emoji_held_out')
READ = (LOSS, *SIZES, *QUALITIES)  # the figures that the fits need
FEWEST = 3  # sizes of a fit with two numbers
_UNITS = {'parameters': 'parameters', 'compute': 'FLOP'}


def power_law(sizes: Sequence[float], losses: Sequence[float]) -> dict[str, float]:
    """Fits loss = factor · size^exponent by least squares of the logarithms.

    Args:
      sizes: positive numbers, of at least two values.
      losses: positive numbers, as many.

    Returns:
      factor, exponent, its standard error, and r_squared of the logarithms.
    """
    from scipy.stats import linregress

    line = linregress(np.log(sizes), np.log(losses))
    return {
        'factor': float(np.exp(line.intercept)),
        'exponent': float(line.slope),
        'standard_error': float(line.stderr),
        'r_squared': float(line.rvalue**2),
    }


def fit_scaling(results: Mapping[str, Any]) -> dict[str, Any] | None:
    """The laws and correlations of all runs; each seed is a point of its own.

    Args:
      results: point -> figure -> values by seed, for the figures of `READ`.

    Returns:
      laws by size, correlations (Pearson's r) by quality, and the number of runs; None with fewer
      than `FEWEST` sizes.

    Raises:
      UserError: a loss or size is not positive.
    """
    columns = {
        name: [value for result in results.values() for value in result[name]['values']]
        for name in READ
    }
    for name in (LOSS, *SIZES):
        if min(columns[name]) <= 0:
            raise UserError(
                f'{name} of a run is {min(columns[name]):g}; a power law wants positive numbers: '
                'remove the run and start it again'
            )
    if len(set(columns[SIZES[0]])) < FEWEST:
        return None
    return {
        'runs': len(columns[LOSS]),
        'laws': {size: power_law(columns[size], columns[LOSS]) for size in SIZES},
        'correlations': {name: _correlation(columns[LOSS], columns[name]) for name in QUALITIES},
    }


def scaling_lines(fit: Mapping[str, Any] | None) -> list[str]:
    """The fits as lines for the table."""
    if fit is None:
        return [f'no power law yet: wanted runs of {FEWEST} sizes or more']
    lines = [
        f'loss = {law["factor"]:.3g} · {_UNITS[size]}^{law["exponent"]:.4f} '
        f'(± {law["standard_error"]:.4f}, R² {law["r_squared"]:.3f}, {fit["runs"]} runs)'
        for size, law in fit['laws'].items()
    ]
    for name, value in fit['correlations'].items():
        number = 'none, one of them is constant' if value is None else f'{value:.3f}'
        lines.append(f'correlation of loss and {name}: {number}')
    return lines


def _correlation(losses: Sequence[float], qualities: Sequence[float]) -> float | None:
    """Pearson's r; None where one of the two is constant."""
    if len(set(losses)) == 1 or len(set(qualities)) == 1:
        return None
    return float(np.corrcoef(losses, qualities)[0, 1])
