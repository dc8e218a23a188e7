"""Trains what a config file says: python -m infinity_jax.main --config=configs/t2i.py"""

import os
import sys

import jax
from absl import app, logging

from infinity_jax.compile_cache import use_compile_cache
from infinity_jax.config import UserError, from_mapping
from infinity_jax.config_flags import CONFIG, parse_flags
from infinity_jax.host_memory import restart_with_tuned_allocator

TASKS = ('t2i', 'tokenizer')


def train(config) -> None:
    """Dispatches on `config.task`; modules of the other task are not imported."""
    if config.task == 't2i':
        from infinity_jax import train as task

        task.train(from_mapping(task.T2IConfig, config))
    elif config.task == 'tokenizer':
        from infinity_jax import train_tokenizer as task

        task.train(from_mapping(task.TokenizerRunConfig, config))
    else:
        raise UserError(f'config field task is {config.task!r}; wanted one of {", ".join(TASKS)}')


def main(argv: list[str]) -> None:
    """Trains; everything but the flags is in the config file."""
    del argv  # parse_flags refused anything that is not a flag
    logging.set_verbosity(logging.WARNING)
    use_compile_cache()
    join_processes()
    train(CONFIG.value)


def join_processes() -> None:
    """Joins the other processes of a run, if the environment names them."""
    address = os.environ.get('JAX_COORDINATOR_ADDRESS')
    if not address:
        return
    try:
        count, index = (int(os.environ[n]) for n in ('JAX_NUM_PROCESSES', 'JAX_PROCESS_ID'))
    except (KeyError, ValueError):
        raise UserError(
            'JAX_COORDINATOR_ADDRESS is set, JAX_NUM_PROCESSES or JAX_PROCESS_ID is not a number; '
            'set both, or neither of the three to train in one process'
        ) from None
    jax.distributed.initialize(address, count, index)


def run(argv: list[str] | None = None) -> None:
    """Errors of the user become one line and exit code 2."""
    try:
        app.run(main, argv=argv, flags_parser=parse_flags)
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print('stopped; the same command goes on from the last checkpoint', file=sys.stderr)
        sys.exit(130)


if __name__ == '__main__':
    restart_with_tuned_allocator()
    run()
