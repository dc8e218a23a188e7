"""The training loop that all tasks share: step, log, evaluate, sample, save, resume."""

import contextlib
import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from infinity_jax.data.batch import Batch
from infinity_jax.data.pipeline import Batches
from infinity_jax.errors import UserError
from infinity_jax.runtime.host_texts import from_first_process
from infinity_jax.runtime.preemption import StopNotice, finishing
from infinity_jax.training.batches import check_batch, put_batch
from infinity_jax.training.checkpoint import Checkpoints
from infinity_jax.training.config import RunConfig, init_key
from infinity_jax.training.init_from import starting_state
from infinity_jax.training.metrics import RunLog, plot_losses
from infinity_jax.training.optimizer import TrainState
from infinity_jax.training.run_folder import changed_since, write_description
from infinity_jax.training.state_memory import check_memory
from infinity_jax.training.throughput import Stopwatch, mesh_peak, shown, time_left


@dataclasses.dataclass(frozen=True)
class Task:
    """The functions of a task. Those of (state, …) read `state` and keep no reference to it.

    Attributes:
      init: key -> TrainState, jitted onto the mesh.
      abstract_state: tree of ShapeDtypeStructs with shardings.
      from_model: makes a TrainState from `config.init_from`, or None.
      batches: this process's host batches, one per step.
      train_step: (state, batch) -> (state, metrics); jitted, state donated.
      step_flops: batch -> model FLOP of a step on it, by `infinity_jax.training.flops`.
      evaluate: state -> held-out metrics.
      sample: (state, path) writes an image of current samples.
      export: (state, folder) writes the model folder.
    """

    init: Callable[[jax.Array], TrainState]
    abstract_state: Any
    from_model: Callable[[], TrainState] | None
    batches: Batches
    train_step: Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]
    step_flops: Callable[[Batch], float]
    evaluate: Callable[[TrainState], dict[str, Any]]
    sample: Callable[[TrainState, pathlib.Path], None]
    export: Callable[[TrainState, pathlib.Path], None]


def with_shardings(shapes: Any, shardings: Any) -> Any:
    """ShapeDtypeStructs with shardings, which restoring a checkpoint needs."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
    )


def run(config: RunConfig, task: Task, mesh: Mesh) -> pathlib.Path:
    """Trains to `config.steps`, from the last checkpoint if any; exports the averaged weights.

    Args:
      config: the run.
      task: the functions of the task.
      mesh: the devices.

    Returns:
      the folder of the exported model.

    Raises:
      UserError: the state does not fit into memory, a save failed, or `max_bad_steps` steps in a
        row were not finite.
      Preempted: SIGTERM came, and the state is saved.
    """
    check_batch(config, mesh)
    run_dir = pathlib.Path(config.run_dir)
    with contextlib.ExitStack() as closing:  # all are closed, if one cannot be closed too
        closing.callback(task.batches.close)  # ends worker processes
        check_memory(task.abstract_state, mesh)
        checkpoints = Checkpoints(run_dir, config.keep_checkpoints)
        closing.callback(checkpoints.close)
        state = starting_state(
            checkpoints,
            task.abstract_state,
            from_scratch=lambda: task.init(init_key(config.seed)),
            from_model=task.from_model,
            init_from=config.init_from,
            changes=functools.partial(changed_since, config, run_dir),
        )
        step = int(state.step)
        task.batches.move_to(step)
        changes = changed_since(config, run_dir) if step else ''
        if changes and jax.process_index() == 0:
            print(changes)
        # Only here: a resume that is refused above must leave the run's description as it is.
        write_description(config, run_dir)
        try:
            log = RunLog(run_dir, step, config.steps, checkpoints.recent_losses(step))
            closing.callback(log.close)
            with StopNotice() as notice:
                state = _train(config, task, state, mesh, checkpoints, log, notice)
        except OSError as error:  # of metrics or images: checkpoints have their own message
            raise UserError(
                f'run folder {run_dir} cannot be written: {error}; free space or make it writable, '
                'then start the same command again: it goes on from the last checkpoint'
            ) from None
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
    """The loop over steps; everything is saved when it returns.

    Metrics are read one step late, so that the devices never wait for the host.
    """
    if config.init_from and int(state.step) == 0:
        with log.pause():
            _evaluate(config, task, state, 0, log)  # the metrics before fine-tuning
    if 0 < int(state.step) < config.steps:
        with log.pause():
            _catch_up(config, task, state, log, checkpoints, notice)
    watch = Stopwatch(config.batch_size, mesh_peak(mesh))
    pending = None  # (step, metrics, FLOP) of the step that the devices work on
    for step in range(int(state.step) + 1, config.steps + 1):
        start = time.monotonic()
        batch = put_batch(next(task.batches), mesh)
        watch.add_wait(time.monotonic() - start)
        state, metrics = task.train_step(state, batch)
        flops = task.step_flops(batch)
        del batch  # it may be memory shared with workers, which a traceback would keep
        if pending is not None:
            _report(config, log, watch, *pending)
        pending = (step, metrics, flops)
        last, stop = step == config.steps, notice.stops()
        if not (last or stop or _saves(config, step) or _due(config, step)):
            continue
        _report(config, log, watch, *pending)
        pending = None
        # Saved before evaluation and samples, so that nothing is lost if the run ends meanwhile.
        if last or stop or _saves(config, step):
            checkpoints.save(step, state, log.recent_losses)
        if stop:
            checkpoints.wait()
            raise notice.stopped(step)
        if not last:
            with log.pause():
                _evaluate_and_sample(config, task, state, step, log, checkpoints, notice)
        watch.restart()
    # Also for a resumed run without steps left: it may have been stopped during its evaluation.
    with log.pause():
        _evaluate_and_sample(config, task, state, int(state.step), log, checkpoints, notice)
    checkpoints.wait()
    if notice.stops():  # while the last step was being saved
        raise notice.stopped(int(state.step))
    return state


def _catch_up(
    config: RunConfig,
    task: Task,
    state: TrainState,
    log: RunLog,
    checkpoints: Checkpoints,
    notice: StopNotice,
) -> None:
    """Evaluates and samples at the step of a resume, if the run ended before it had done so."""
    step = int(state.step)
    done = [_evaluate.__name__] if log.has(step, 'heldout') else []
    done += [_sample.__name__] if _sample_path(config, step).exists() else []
    names = from_first_process(done)
    _evaluate_and_sample(config, task, state, step, log, checkpoints, notice, done=names)


def _evaluate_and_sample(
    config: RunConfig,
    task: Task,
    state: TrainState,
    step: int,
    log: RunLog,
    checkpoints: Checkpoints,
    notice: StopNotice,
    done: Sequence[str] = (),
) -> None:
    """Evaluates and samples as due after `step`; raises `Preempted` if SIGTERM came meanwhile."""
    for action in _due(config, step):
        if action.__name__ not in done:
            action(config, task, state, step, log)
            if notice.stops():
                checkpoints.save(step, state, log.recent_losses)
                checkpoints.wait()
                raise notice.stopped(step)


def _saves(config: RunConfig, step: int) -> bool:
    return step % config.checkpoint_every == 0


def _due(config: RunConfig, step: int) -> list[Callable[..., None]]:
    """What is due after a step: evaluation, samples, or both."""
    last = step >= config.steps
    evaluates = last or step % config.eval_every == 0
    samples = last or step % config.sample_every == 0 or step == config.first_sample
    return [_evaluate] * evaluates + [_sample] * samples


def _report(
    config: RunConfig,
    log: RunLog,
    watch: Stopwatch,
    step: int,
    metrics: dict[str, jax.Array],
    flops: float,
) -> None:
    """Reads a finished step's metrics; ends the run after too many bad steps in a row."""
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
        if watch.readings == 2 and step < config.steps:
            log.say(time_left(config.steps - step, rates['step_seconds']))
    else:
        log.progress(step)


def _evaluate(config: RunConfig, task: Task, state: TrainState, step: int, log: RunLog) -> None:
    values = jax.device_get(task.evaluate(state))
    log.write(step, 'heldout', values)
    numbers = [f'{name} {value:.4f}' for name, value in values.items() if value.ndim == 0]
    log.say(f'step {step}: held out: ' + ', '.join(numbers))
    if jax.process_index() == 0:
        plot_losses(config.run_dir)


def _sample(config: RunConfig, task: Task, state: TrainState, step: int, _: RunLog) -> None:
    path = _sample_path(config, step)
    path.parent.mkdir(exist_ok=True)
    task.sample(state, path)


def _sample_path(config: RunConfig, step: int) -> pathlib.Path:
    return pathlib.Path(config.run_dir) / 'samples' / f'step_{step:07}.png'
