"""The training loop that every task shares: step, log, evaluate, draw, save, resume."""

import dataclasses
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from infinity_jax.checkpoint import Checkpoints, starting_state
from infinity_jax.config import UserError
from infinity_jax.data.config import DataConfig
from infinity_jax.data.pipeline import Batches, training_batches
from infinity_jax.metrics import RunLog, plot_losses
from infinity_jax.optimizer import OptimizerConfig, TrainState
from infinity_jax.preemption import StopNotice, finishing
from infinity_jax.run_folder import write_description
from infinity_jax.sharding import MeshConfig, batch_sharding
from infinity_jax.throughput import Stopwatch, mesh_peak, shown

HELD_OUT_SEED = 1  # of the held-out pictures, whatever the run's own seed: figures stay comparable


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What every task's configuration holds; the task's own fields are added in a subclass."""

    task: str
    run_dir: str  # checkpoints, metrics, samples and the final model go here
    steps: int
    batch_size: int  # pictures a step, over all devices and hosts
    data: DataConfig
    optimizer: OptimizerConfig
    seed: int = 0  # of weights, data order and every random draw
    init_from: str = ''  # model or run folder whose weights to start from; '': random
    mesh: MeshConfig = MeshConfig()
    log_every: int = 10  # steps between lines in metrics.jsonl
    eval_every: int = 200  # steps between held-out evaluations
    eval_batches: int = 4  # held-out batches in one evaluation, always the same ones
    sample_every: int = 1000  # steps between sample pictures
    checkpoint_every: int = 500  # steps between checkpoints
    keep_checkpoints: int = 2  # newest ones kept
    max_bad_steps: int = 20  # steps in a row without finite loss and gradient that stop the run

    def __post_init__(self):
        for name in (
            'steps', 'batch_size', 'log_every', 'eval_every', 'eval_batches', 'sample_every',
            'checkpoint_every', 'keep_checkpoints', 'max_bad_steps',
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise UserError(f'config field {name} is {getattr(self, name)}; wanted 1 or more')


@dataclasses.dataclass(frozen=True)
class Task:
    """A task as the loop sees it. Functions of (state, …) read `state`, never keep it.

    Attributes:
      init: key -> TrainState, jitted onto the mesh.
      abstract_state: tree of ShapeDtypeStructs with shardings.
      from_model: makes a TrainState from `config.init_from`, or None.
      batches: this process's host batches; a step reads one.
      train_step: (state, batch) -> (state, metrics); jitted, state donated.
      step_flops: batch -> model FLOP of the step that it makes, by `infinity_jax.flops`.
      evaluate: state -> held-out metrics.
      sample: (state, path) writes a picture of how things stand.
      export: (state, folder) writes the model folder.
    """

    init: Callable[[jax.Array], TrainState]
    abstract_state: Any
    from_model: Callable[[], TrainState] | None
    batches: Batches
    train_step: Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]
    step_flops: Callable[[Any], float]
    evaluate: Callable[[TrainState], dict[str, Any]]
    sample: Callable[[TrainState, pathlib.Path], None]
    export: Callable[[TrainState, pathlib.Path], None]


def located_data(config: RunConfig) -> DataConfig:
    """The run's data, told where the sizes of its pictures are remembered."""
    folder = config.data.index_dir or str(pathlib.Path(config.run_dir) / 'data_index')
    return dataclasses.replace(config.data, index_dir=folder)


def make_batches(config: RunConfig, split: str, **text: Any) -> Batches:
    """The batches of a split ('train' or 'held_out').

    Args:
      text: `text_tokenizer` and `text_length`, for tasks that read captions.
    """
    return training_batches(
        located_data(config),
        split=split,
        batch_size=config.batch_size,
        seed=config.seed if split == 'train' else HELD_OUT_SEED,
        **text,
    )


def held_out_batches(config: RunConfig, **text: Any) -> list[dict[str, Any]]:
    """The host batches that every evaluation uses."""
    return first_batches(config, 'held_out', config.eval_batches, **text)


def first_batches(config: RunConfig, split: str, count: int, **text: Any) -> list[dict[str, Any]]:
    """The first few host batches of a split, read without worker processes."""
    data = dataclasses.replace(config.data, num_workers=0)
    batches = make_batches(dataclasses.replace(config, data=data), split, **text)
    return [next(batches) for _ in range(count)]


def init_key(seed: int) -> jax.Array:
    """The key of the first weights; apart from those of steps, which fold their number in."""
    return jax.random.split(jax.random.key(seed))[0]


def step_key(seed: int, step: jax.Array) -> jax.Array:
    """The key of all randomness in a step."""
    return jax.random.fold_in(jax.random.split(jax.random.key(seed))[1], step)


def check_batch(config: RunConfig, mesh: Mesh) -> None:
    """Raises `UserError` unless the batch splits evenly over the mesh and over the hosts."""
    shards = mesh.shape['data'] * mesh.shape['fsdp']
    if config.batch_size % shards:
        raise UserError(
            f'batch_size {config.batch_size} does not divide over data x fsdp = {shards} shares; '
            f'use a multiple of {shards} or change config.mesh'
        )
    if shards % jax.process_count():
        raise UserError(
            f'mesh has data x fsdp = {shards} shares of a batch for {jax.process_count()} hosts, '
            'which would feed different pictures to one share; give every host a share'
        )


def put_batch(batch: dict[str, Any], mesh: Mesh) -> dict[str, jax.Array]:
    """Host arrays, this process's share of the batch, to global arrays split over the mesh.

    Captions, which are text, stay behind.
    """
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, value)
        for name, value in batch.items()
        if isinstance(value, np.ndarray)
    }


def with_shardings(shapes: Any, shardings: Any) -> Any:
    """ShapeDtypeStructs that also say where they live, as restoring wants them."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
    )


def run(config: RunConfig, task: Task, mesh: Mesh) -> pathlib.Path:
    """Trains to `config.steps`, from wherever the run folder stands; exports the EMA weights.

    Args:
      config: the run.
      task: what a step does.
      mesh: the devices.

    Returns:
      the folder of the exported model.

    Raises:
      UserError: a save failed, or `max_bad_steps` steps in a row were not finite.
      Preempted: SIGTERM came, and the state is saved.
    """
    check_batch(config, mesh)
    run_dir = pathlib.Path(config.run_dir)
    checkpoints = Checkpoints(run_dir, config.keep_checkpoints)
    state = starting_state(
        checkpoints,
        task.abstract_state,
        from_scratch=lambda: task.init(init_key(config.seed)),
        from_model=task.from_model,
        init_from=config.init_from,
    )
    task.batches.move_to(int(state.step))
    # After the decision: a refused resume must leave the description of the run that is there.
    write_description(config, run_dir)
    log = RunLog(run_dir, int(state.step), config.steps)
    try:
        with StopNotice() as notice:
            state = _train(config, task, state, mesh, checkpoints, log, notice)
        checkpoints.wait()
    except OSError as error:  # metrics, pictures: what saves checkpoints has its own message
        raise UserError(
            f'run folder {run_dir} cannot be written: {error}; free space or mend it, then start '
            'the same command again: it goes on from the last checkpoint'
        ) from None
    finally:
        task.batches.close()  # ends worker processes
        log.close()
        checkpoints.close()
    folder = run_dir / 'model'
    with finishing():
        task.export(state, folder)
    return folder


def _train(
    config: RunConfig,
    task: Task,
    state: TrainState,
    mesh: Mesh,
    checkpoints: Checkpoints,
    log: RunLog,
    notice: StopNotice,
) -> TrainState:
    """The loop itself. Metrics are read one step late, so that the devices never wait for us."""
    if config.init_from and int(state.step) == 0:
        with log.pause():
            _evaluate(config, task, state, 0, log)  # what the model could do before
    watch = Stopwatch(config.batch_size, mesh_peak(mesh))
    pauses = (config.eval_every, config.sample_every, config.checkpoint_every)
    late = None  # (step, metrics, FLOP) of the step under way
    for step in range(int(state.step) + 1, config.steps + 1):
        start = time.monotonic()
        batch = put_batch(next(task.batches), mesh)
        watch.add_wait(time.monotonic() - start)
        state, metrics = task.train_step(state, batch)
        flops = task.step_flops(batch)
        del batch  # it may be memory shared with workers, which an error raised below would keep
        if late is not None:
            _report(config, log, watch, *late)
        late = (step, metrics, flops)
        last, stop = step == config.steps, notice.stops()
        if not (last or stop or any(step % every == 0 for every in pauses)):
            continue
        _report(config, log, watch, *late)
        late = None
        # First of all that is due, so that nothing is lost if the run ends meanwhile.
        if last or stop or step % config.checkpoint_every == 0:
            checkpoints.save(step, state)
        if stop:
            checkpoints.wait()
            raise notice.stopped(step)
        if not last:
            with log.pause():
                _look(config, task, state, step, log, checkpoints, notice)
        watch.restart()
    # Also if all steps were taken before: the run may have been stopped while it looked.
    with log.pause():
        _look(config, task, state, int(state.step), log, checkpoints, notice)
    return state


def _look(
    config: RunConfig,
    task: Task,
    state: TrainState,
    step: int,
    log: RunLog,
    checkpoints: Checkpoints,
    notice: StopNotice,
) -> None:
    """Evaluates and draws, if due after `step`; raises `Preempted` if SIGTERM came meanwhile."""
    for every, look in ((config.eval_every, _evaluate), (config.sample_every, _draw)):
        if step >= config.steps or step % every == 0:
            look(config, task, state, step, log)
            if notice.stops():
                checkpoints.save(step, state)
                checkpoints.wait()
                raise notice.stopped(step)


def _report(
    config: RunConfig,
    log: RunLog,
    watch: Stopwatch,
    step: int,
    metrics: dict[str, jax.Array],
    flops: float,
) -> None:
    """Reads a finished step's metrics; stops the run when too many in a row were bad."""
    bad = int(metrics['bad_in_a_row'])  # waits for the step
    watch.add_step(flops)
    if bad >= config.max_bad_steps:
        raise UserError(
            f'step {step}: {bad} steps in a row gave a loss or gradient that is not finite '
            f'(max_bad_steps {config.max_bad_steps}); lower config.optimizer.learning_rate, look '
            'at the data, and start again: the last checkpoint is resumed'
        )
    loss = float(metrics['loss'])
    spike = log.spike(step, loss)
    if step % config.log_every == 0 or bad or spike or step == config.steps:
        values, rates = {**jax.device_get(metrics), **spike}, watch.read()
        log.write(step, 'train', {**values, **rates})
        log.progress(step, loss=loss, lr=float(values['learning_rate']), **shown(rates))
    else:
        log.progress(step)


def _evaluate(config: RunConfig, task: Task, state: TrainState, step: int, log: RunLog) -> None:
    values = jax.device_get(task.evaluate(state))
    log.write(step, 'heldout', values)
    numbers = [f'{name} {value:.4f}' for name, value in values.items() if value.ndim == 0]
    log.say(f'step {step}: held out: ' + ', '.join(numbers))
    if jax.process_index() == 0:
        plot_losses(config.run_dir)


def _draw(config: RunConfig, task: Task, state: TrainState, step: int, _: RunLog) -> None:
    folder = pathlib.Path(config.run_dir) / 'samples'
    folder.mkdir(exist_ok=True)
    task.sample(state, folder / f'step_{step:07}.png')
