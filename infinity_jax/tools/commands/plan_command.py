"""The command `infinity-jax plan`: what a run would take on a TPU slice, without owning one."""

import argparse
import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from infinity_jax.errors import UserError


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The run, the slice, and what to change of the run."""
    parser.add_argument(
        'config', help='for instance configs/t2i.py:2b_1024; --config.FIELD=VALUE changes a field'
    )
    parser.add_argument('--topology', required=True, help='for instance v5e:16x16 or v5p:1x1x1')
    parser.add_argument(
        '--generation', action='store_true', help='drawing images instead of training'
    )
    parser.add_argument('--num', type=int, default=1, help='generation: images a chip at once')
    parser.add_argument('--at-once', type=int, metavar='N', help='images a chip works on together')
    parser.add_argument('--accumulate', type=int, metavar='N', help='as config.accumulate_steps')
    parser.add_argument('--remat', help='as config.remat')
    parser.add_argument(
        '--from', dest='source', type=lambda source: {'pictures': 'images'}.get(source, source),
        choices=['images', 'features'], default='images',
        help='whether tokenizer and text encoder run in the step',
    )  # fmt: skip
    parser.add_argument(
        '--quick', action='store_true', help='one compilation: no unrolled layers, no largest batch'
    )
    parser.add_argument('--json', metavar='FILE', help='write the figures there too')
    parser.set_defaults(run=run, overrides=())


def run(args: argparse.Namespace) -> None:
    """Prints the plan."""
    from infinity_jax.tools.plan.topology import can_compile, devices_of, parse_topology, prepare

    topology = parse_topology(args.topology)
    prepare()
    from infinity_jax.sharding import MeshConfig, deviceless_mesh, make_mesh

    for name in ('num', 'at_once', 'accumulate'):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f'--{name.replace("_", "-")} is {value}; wanted 1 or more')
    config = changed(_read(args.config, args.overrides), args, topology.num_chips)
    # A preset's mesh is for training on the slice that it names; images are drawn on any.
    own_mesh = not args.generation or any('.mesh.' in field for field in args.overrides)
    axes = config.mesh if own_mesh else MeshConfig(data=1, fsdp=-1)
    if can_compile():
        mesh = make_mesh(axes, devices_of(topology))
    else:
        mesh = deviceless_mesh(axes, topology.num_chips)
    tasks = {'t2i': _generation if args.generation else _training, 'tokenizer': _tokenizer}
    lines, figures = tasks[config.task](args, config, topology, mesh)
    print('\n'.join(lines))
    if args.json:
        _write(pathlib.Path(args.json), {'config': args.config, **figures})


def changed(config: Any, args: argparse.Namespace, chips: int) -> Any:
    """The run with what flags say; the batch follows `--at-once`, or `--accumulate` cuts it."""
    given = {'remat': args.remat, 'accumulate_steps': args.accumulate}
    options = {name: value for name, value in given.items() if value is not None}
    for name in options:
        if not hasattr(config, name):
            raise UserError(f'config field {name} does not exist in task {config.task}; leave it')
    if args.at_once:
        parts = options.get('accumulate_steps') or getattr(config, 'accumulate_steps', 1)
        options['batch_size'] = args.at_once * parts * chips
    return dataclasses.replace(config, **options)


def _read(spec: str, overrides: Sequence[str]) -> Any:
    from infinity_jax.tools.commands.config_flags import read_config_file
    from infinity_jax.training.init_from import run_config

    return run_config(read_config_file(spec, overrides))


def _training(args, config, topology, mesh) -> tuple[list[str], dict[str, Any]]:
    from infinity_jax.tools.plan.abstract_step import configured_parts
    from infinity_jax.tools.plan.report import training_json, training_lines
    from infinity_jax.tools.plan.topology import can_compile
    from infinity_jax.tools.plan.training import Planner, TrainingPlan

    planner = Planner(config, configured_parts(config), topology, mesh, args.source)
    if can_compile():
        full = not args.quick
        plan = planner.training(layers=full, batch=full, say=_say)
    else:
        plan = TrainingPlan(planner.analysis())
    depth = config.transformer.depth
    return training_lines(plan, topology, depth), training_json(plan, topology, depth)


def _generation(args, config, topology, mesh) -> tuple[list[str], dict[str, Any]]:
    from infinity_jax.tools.plan.abstract_step import configured_parts
    from infinity_jax.tools.plan.generation import generation_json, generation_lines, plan_drawing

    plan = plan_drawing(configured_parts(config), topology, mesh, args.num, _say)
    return generation_lines(plan, topology), generation_json(plan, topology)


def _tokenizer(args, config, topology, mesh) -> tuple[list[str], dict[str, Any]]:
    from infinity_jax.tools.plan.report import training_json, training_lines
    from infinity_jax.tools.plan.tokenizer import plan_tokenizer

    plan = plan_tokenizer(config, topology, mesh, _say)
    return training_lines(plan, topology), training_json(plan, topology)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _write(path: pathlib.Path, figures: dict[str, Any]) -> None:
    try:
        path.write_text(json.dumps(figures, indent=2) + '\n')
    except OSError as error:
        raise UserError(f'--json {path} cannot be written: {error}; name another file') from None
