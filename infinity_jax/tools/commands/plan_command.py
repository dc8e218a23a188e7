"""The command `infinity-jax plan`: memory and time of a run on TPUs or GPUs that need not exist."""

import argparse
import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from infinity_jax.errors import UserError
from infinity_jax.renamed import notice
from infinity_jax.tools.commands.flag_types import check_positive, local_path, output_path
from infinity_jax.tools.commands.generation_flags import add_quantization_flags, quantization_of

if TYPE_CHECKING:
    from jax.sharding import AbstractMesh, Mesh

# Flags of one kind of plan, by attribute -> what to know in the other kind.
OF_GENERATION = {
    'num': 'the images of a training step are set by --at-once',
    'text_encoder': 'training is planned without it by --from features',
    'weights': 'the base of LoRA is in 8 bits with --config.lora.base_dtype=int8',
    'cache': 'training has no cache',
    'decoder_precision': 'training has no decoder',
}
OF_TRAINING = {
    'at_once': 'the images of a call are set by --num',
    'accumulate': 'generation has no gradients to accumulate',
    'remat': 'generation has no backward pass',
    'source': 'generation starts from text',
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `plan`: the run, the slice, and changes to the run."""
    parser.add_argument(
        'config',
        type=local_path,
        metavar='FILE[:VARIANT]',
        help='config file, such as configs/t2i.py:2b_1024; --config.FIELD=VALUE changes a field '
        'as in training',
    )
    parser.add_argument(
        '--topology',
        required=True,
        metavar='CHIP:SHAPE',
        help='TPU slice: chip and number of chips along each axis, such as v5e:16x16 or v5p:1x1x1; '
        'or GPUs: card and number, or hosts x cards, such as h100:8, h100:2x8 or rtx4090:1',
    )
    parser.add_argument(
        '--generation',
        action='store_true',
        help='plan the generation of images with guidance (default: training)',
    )
    parser.add_argument(
        '--num',
        type=int,
        metavar='N',
        help='with --generation: images per chip and call (default: 1)',
    )
    parser.add_argument(
        '--text-encoder',
        choices=['device', 'host'],
        help='with --generation: the memory that holds its weights while images are generated '
        '(default: device)',
    )
    add_quantization_flags(parser, title='lossy savings of --generation')
    parser.set_defaults(weights=None, cache=None)  # None: not given, see `check_flags`
    parser.add_argument(
        '--at-once',
        type=int,
        metavar='N',
        help='training: images that a chip processes at the same time, which sets the batch size '
        "(default: the config's batch size over its shares of data x fsdp and accumulate_steps)",
    )
    parser.add_argument(
        '--accumulate',
        type=int,
        metavar='N',
        help="replaces the config's accumulate_steps (default: the config's)",
    )
    parser.add_argument(
        '--remat', metavar='NAME', help="replaces the config's remat (default: the config's)"
    )
    parser.add_argument(
        '--from',
        dest='source',
        type=current_source,
        choices=['images', 'features'],
        help='input of the training step: images, with tokenizer and text encoder in the step, or '
        'their precomputed features (default: images)',
    )
    parser.add_argument(
        '--quick',
        action='store_true',
        help='training: compile one program only, without the estimates of the largest batch and '
        'of the unrolled layers (default: all programs); tokenizers and --generation have no '
        'others',
    )
    parser.add_argument(
        '--json',
        type=output_path,
        metavar='FILE',
        help='write the figures to this file too (default: not written)',
    )
    parser.set_defaults(run=run, overrides=())


def current_source(text: str) -> str:
    """A value of --from; 'pictures' is the former name of 'images'."""
    if text != 'pictures':
        return text
    notice('--from pictures', '--from images')
    return 'images'


def run(args: argparse.Namespace) -> None:
    """Prints the plan, and writes it as JSON if asked to."""
    from infinity_jax.tools.plan.topology import can_compile, devices_of, parse_topology, prepare

    topology = parse_topology(args.topology)
    prepare()
    from infinity_jax.sharding import MeshConfig, deviceless_mesh, make_mesh

    check_positive(args, 'num', 'at_once', 'accumulate')
    config = _read(args.config, args.overrides)
    check_flags(args, config.task)
    # A preset's mesh is for training on the slice that it names; images are generated on any.
    own_mesh = not args.generation or any('.mesh.' in field for field in args.overrides)
    axes = config.mesh if own_mesh else MeshConfig(data=1, fsdp=-1)
    mesh: Mesh | AbstractMesh
    if can_compile(topology):
        mesh = make_mesh(axes, devices_of(topology))
    else:
        mesh = deviceless_mesh(axes, topology.num_chips)
    config = changed(config, args, mesh)
    tasks = {'t2i': _generation if args.generation else _training, 'tokenizer': _tokenizer}
    lines, figures = tasks[config.task](args, config, topology, mesh)
    print('\n'.join(lines))
    if args.json:
        _write(pathlib.Path(args.json), {'config': args.config, **figures})


def check_flags(args: argparse.Namespace, task: str) -> None:
    """Checks that each flag has a meaning in the plan that is made.

    Raises:
      UserError: one is of another kind of plan.
    """
    if task != 't2i':
        for name in ('generation', *OF_GENERATION, 'source'):
            if getattr(args, name) not in (None, False):
                raise UserError(
                    f'{_flag(name)} is for configs of task t2i, and {args.config} is of task '
                    f'{task}; leave it out'
                )
    for name, other in (OF_TRAINING if args.generation else OF_GENERATION).items():
        if getattr(args, name) is not None:
            flag = _flag(name)
            if args.generation:
                mode, remedy = 'training, and --generation is given', 'leave one of them out'
            else:
                mode = '--generation, which is not given'
                remedy = f'add that, or leave {flag} out'
            raise UserError(f'{flag} is for {mode} ({other}); {remedy}')


def _flag(name: str) -> str:
    return '--from' if name == 'source' else f'--{name.replace("_", "-")}'


def changed(config: Any, args: argparse.Namespace, mesh: 'Mesh | AbstractMesh') -> Any:
    """The run with the fields that flags replace; `--at-once` sets the batch size."""
    from infinity_jax.tools.plan.training import batch_shares

    given = {'remat': args.remat, 'accumulate_steps': args.accumulate}
    options = {name: value for name, value in given.items() if value is not None}
    for name in options:
        if not hasattr(config, name):
            raise UserError(f'config field {name} does not exist in task {config.task}; leave it')
    if args.at_once:
        parts = options.get('accumulate_steps') or getattr(config, 'accumulate_steps', 1)
        options['batch_size'] = args.at_once * parts * batch_shares(mesh)
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

    planner = Planner(config, configured_parts(config), topology, mesh, args.source or 'images')
    if can_compile(topology):
        full = not args.quick
        plan = planner.training(layers=full, batch=full, progress=_progress)
    else:
        plan = TrainingPlan(planner.analysis())
    depth = config.transformer.depth
    return training_lines(plan, topology, depth), training_json(plan, topology, depth)


def _generation(args, config, topology, mesh) -> tuple[list[str], dict[str, Any]]:
    from infinity_jax.tools.plan.abstract_step import configured_parts
    from infinity_jax.tools.plan.generation import (
        generation_json,
        generation_lines,
        plan_generation,
    )

    plan = plan_generation(
        configured_parts(config),
        topology,
        mesh,
        args.num or 1,
        _progress,
        quantization=quantization_of(args),
        text_on_host=args.text_encoder == 'host',
    )
    return generation_lines(plan, topology), generation_json(plan, topology)


def _tokenizer(args, config, topology, mesh) -> tuple[list[str], dict[str, Any]]:
    from infinity_jax.tools.plan.report import training_json, training_lines
    from infinity_jax.tools.plan.tokenizer import plan_tokenizer

    plan = plan_tokenizer(config, topology, mesh, _progress)
    return training_lines(plan, topology), training_json(plan, topology)


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _write(path: pathlib.Path, figures: dict[str, Any]) -> None:
    try:
        path.write_text(json.dumps(figures, indent=2) + '\n')
    except OSError as error:
        raise UserError(f'--json {path} cannot be written: {error}; name another file') from None
