"""Small runs: fields of a configuration, and a command for tests that train as a process."""

import sys

from helpers.paths import REPOSITORY

from infinity_jax.data.config import DataConfig
from infinity_jax.training.optimizer import OptimizerConfig

# Of a run inside the test's process, for either task.
FIELDS = {
    'log_every': 1,
    'eval_batches': 1,
    'data': DataConfig(image_size=16),
    'optimizer': OptimizerConfig(learning_rate=1e-2, ema_decay=0.5),
}
COMPILE_CACHE = str(REPOSITORY / '.pytest_cache' / 'jax')
FLAGS = {
    'tokenizer.bits': 4,
    'tokenizer.base_channels': 4,
    'tokenizer.channel_multipliers': '(1,)',
    'tokenizer.residual_blocks': 1,
    'tokenizer.norm_groups': 2,
    'grids': '((1,1),(2,2),(4,4))',
    'data.image_size': 16,
    'data.subset': 'starter',
    'log_every': 1,
    'eval_batches': 1,
    'eval_every': 1000,
    'sample_every': 1000,
    'checkpoint_every': 1000,
}


def command(**fields):
    """Arguments that train on `FLAGS` and further fields of the configuration."""
    flags = [f'--config.{name}={value}' for name, value in {**FLAGS, **fields}.items()]
    return [sys.executable, '-m', 'infinity_jax.main', '--config=configs/tokenizer.py', *flags]
