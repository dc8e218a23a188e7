"""Trains from a config file: python -m infinity_jax.main --config=configs/t2i.py"""

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

from absl import app, logging

from infinity_jax.runtime.compile_cache import use_compile_cache
from infinity_jax.runtime.cpu_devices import use_cores
from infinity_jax.runtime.distributed import join_processes
from infinity_jax.runtime.exit_codes import one_line_endings
from infinity_jax.runtime.host_memory import restart_with_tuned_allocator
from infinity_jax.runtime.supervisor import supervise
from infinity_jax.tools.commands.config_flags import CONFIG, parse_flags
from infinity_jax.training.init_from import run_config
from infinity_jax.training.remote_run import run_folder

TASK_FOLDERS = {'t2i': 'transformer', 'tokenizer': 'tokenizer'}


def train(fields: Mapping[str, Any]) -> None:
    """Runs the task that `fields.task` names; modules of the other task are not imported."""
    config = run_config(fields)
    if config.device_per_core:
        use_cores(config.batch_size // config.accumulate_steps)
    task = importlib.import_module(f'infinity_jax.training.{TASK_FOLDERS[config.task]}.task')
    with run_folder(config.run_dir) as folder:
        task.train(dataclasses.replace(config, run_dir=folder))


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
