"""That the loss is the one of training is shown in test_train.py."""

import numpy as np

from infinity_jax.tools.evaluation.loss import table


def test_table():
    means = {name: np.float32(0.5) for name in ('loss', 'accuracy', 'majority_rate')}
    means |= {f'{name}_per_scale': np.array([0.25, 0.75]) for name in list(means)}
    lines = table(means, ((1, 1), (3, 2)), 32).splitlines()
    assert lines[0] == '32 held-out images'
    assert lines[3].split() == ['3', 'x', '2', '0.7500', '0.7500', '0.7500']
    assert lines[4].split() == ['all', '0.5000', '0.5000', '0.5000']
