"""The command of a small tokenizer run, for tests that start training as a process."""

import sys

from helpers.paths import REPOSITORY

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
