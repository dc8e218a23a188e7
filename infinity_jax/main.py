"""Trains from a config file: python -m infinity_jax.main --config=configs/t2i.py"""

from absl import app, logging

from infinity_jax.config import from_mapping
from infinity_jax.errors import UserError
from infinity_jax.runtime.compile_cache import use_compile_cache
from infinity_jax.runtime.distributed import join_processes
from infinity_jax.runtime.exit_codes import one_line_endings
from infinity_jax.runtime.host_memory import restart_with_tuned_allocator
from infinity_jax.runtime.supervisor import supervise
from infinity_jax.tools.commands.config_flags import CONFIG, parse_flags

TASKS = ('t2i', 'tokenizer')


def train(config) -> None:
    """Dispatches on `config.task`; modules of the other task are not imported."""
    if config.task == 't2i':
        from infinity_jax.training.transformer import task

        task.train(from_mapping(task.T2IConfig, config))
    elif config.task == 'tokenizer':
        from infinity_jax.training.tokenizer import task

        task.train(from_mapping(task.TokenizerRunConfig, config))
    else:
        raise UserError(f'config field task is {config.task!r}; wanted one of {", ".join(TASKS)}')


def main(argv: list[str]) -> None:
    """Trains with the configuration that the flags name."""
    del argv  # parse_flags refuses anything that is not a flag
    logging.set_verbosity(logging.WARNING)
    join_processes()
    use_compile_cache()
    train(CONFIG.value)


def run(argv: list[str] | None = None) -> None:
    """Trains; a `UserError` and other endings become one line and an exit code."""
    with one_line_endings():
        app.run(main, argv=argv, flags_parser=parse_flags)


if __name__ == '__main__':
    restart_with_tuned_allocator()
    supervise()
    run()
