"""AdamW as in the paper: weight decay, schedule, clipping, averaging, and the state (paper 4)."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import flax.struct
import jax
import jax.numpy as jnp
import optax

from infinity_jax.errors import UserError
from infinity_jax.ranges import RATE, Range, check_ranges, real

# Parameters that never decay, by the last name in their path ...
NO_DECAY_NAMES = frozenset(
    {
        'bias',
        'scale',  # of every norm
        'query_bias',
        'value_bias',
        'unconditional_text',
        'first_token',
        'level_embed',
        'modulation_table',
        'log_scale',
        'relative_bias',
    }
)
# ... and by their last two: the learned query of the text pooling.
NO_DECAY_PAIRS = frozenset({('text_pool', 'query')})


_RANGES = {
    'learning_rate': real(0, 100),
    'warmup_steps': Range(0, 10**9),
    'decay_steps': Range(0, 10**9),
    'final_learning_rate': real(0, 100),
    'beta1': real(0, 1, below=True),
    'beta2': real(0, 1, below=True),
    'epsilon': real(0, 1, above=True),
    'weight_decay': real(0, 100),
    'clip_norm': real(0, 1e9),
    'ema_decay': RATE,
}


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its schedule. `learning_rate` is the peak, and the batch size does not scale it."""

    learning_rate: float  # at the end of the warm-up; 6e-5 at batch 4096 for 256² in the paper
    warmup_steps: int = 0  # linear from 0; the released script has none
    decay: str = 'constant'  # 'constant' (released) or 'cosine', down to final_learning_rate
    decay_steps: int = 0  # step at which the decay ends; 0: the last step of the run
    final_learning_rate: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.97
    epsilon: float = 1e-8
    mu_dtype: str = 'float32'  # of Adam's first moment; 'bfloat16' halves its memory
    weight_decay: float = 0.005  # times the learning rate, as AdamW has it
    clip_norm: float = 5.0  # of the global gradient norm, as released; 0: no clipping
    ema_decay: float = 0.9999  # reached through (1 + step) / (10 + step)

    def __post_init__(self):
        check_ranges(self, 'optimizer.', _RANGES)
        if self.decay not in ('constant', 'cosine'):
            raise UserError(f"optimizer.decay is {self.decay!r}; wanted 'constant' or 'cosine'")
        if self.mu_dtype not in ('float32', 'bfloat16'):
            raise UserError(
                f"optimizer.mu_dtype is {self.mu_dtype!r}; wanted 'float32' or 'bfloat16'"
            )


def decay_mask(params: Any) -> Any:
    """True where weight decay applies: everywhere but at the parameters that are named above.

    Args:
      params: parameter tree, or a tree of shapes with the same paths.
    """

    def decays(path, _):
        # Boxes that carry logical axes add attribute keys to a path; names are dictionary keys.
        names = tuple(key.key for key in path if isinstance(key, jax.tree_util.DictKey))
        return names[-1] not in NO_DECAY_NAMES and names[-2:] not in NO_DECAY_PAIRS

    return jax.tree_util.tree_map_with_path(decays, params)


def make_schedule(config: OptimizerConfig, steps: int) -> Callable[[jax.Array], jax.Array]:
    """Learning rate by number of updates made so far.

    Args:
      config: the optimizer's fields.
      steps: length of the run; a cosine decay ends there unless `decay_steps` is set.
    """
    last = max(config.decay_steps or steps, config.warmup_steps + 1)

    def schedule(count):
        count = jnp.asarray(count, jnp.float32)
        rise = jnp.minimum((count + 1) / max(config.warmup_steps, 1), 1.0)
        if config.decay == 'constant':
            return config.learning_rate * rise
        done = jnp.clip((count - config.warmup_steps) / (last - config.warmup_steps), 0.0, 1.0)
        fall = 0.5 * (1 + jnp.cos(jnp.pi * done))
        span = config.learning_rate - config.final_learning_rate
        return (config.final_learning_rate + span * fall) * rise

    return schedule


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW with masked weight decay."""
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    return optax.chain(
        *clip,
        optax.adamw(
            make_schedule(config, steps),
            b1=config.beta1,
            b2=config.beta2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            mask=decay_mask,
            mu_dtype=config.mu_dtype,
        ),
    )


class TrainState(flax.struct.PyTreeNode):
    """Everything that a training step changes; one pytree, checkpointed as it is.

    Attributes:
      step: steps taken, skipped ones included; int32.
      params: trained parameters, float32.
      ema: their exponential moving averages, which are exported.
      opt_state: optax state.
      skipped: steps whose loss or gradient was not finite; int32.
      bad_in_a_row: such steps since the last good one; int32.
    """

    step: jax.Array
    params: Any
    ema: Any
    opt_state: Any
    skipped: jax.Array
    bad_in_a_row: jax.Array


State = TypeVar('State', bound=TrainState)


def new_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step. Every leaf is its own buffer, so that it can be donated."""
    zero = lambda: jnp.zeros((), jnp.int32)
    return TrainState(
        step=zero(),
        params=params,
        ema=jax.tree.map(jnp.copy, params),
        opt_state=optimizer.init(params),
        skipped=zero(),
        bad_in_a_row=zero(),
    )


def apply_gradients(
    state: State,
    grads: Any,
    loss: jax.Array,
    optimizer: optax.GradientTransformation,
    config: OptimizerConfig,
) -> tuple[State, dict[str, jax.Array]]:
    """One AdamW and EMA update; a step whose loss or gradient is not finite changes nothing.

    Args:
      state: a `TrainState`, or a subclass, whose other fields stay as they are.

    Returns:
      The next state and the scalars `grad_norm` (before clipping), `skipped`, `bad_in_a_row`.
    """
    grad_norm = optax.global_norm(grads)
    good = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    count = (state.step - state.skipped).astype(jnp.float32)
    rate = 1 - jnp.minimum(config.ema_decay, (1 + count) / (10 + count))
    ema = jax.tree.map(lambda old, new: old + rate * (new - old), state.ema, params)
    # `where` discards the results of a bad step, NaN included.
    keep = lambda new, old: jax.tree.map(lambda n, o: jnp.where(good, n, o), new, old)
    bad = 1 - good.astype(jnp.int32)
    state = state.replace(
        step=state.step + 1,
        params=keep(params, state.params),
        ema=keep(ema, state.ema),
        opt_state=keep(opt_state, state.opt_state),
        skipped=state.skipped + bad,
        bad_in_a_row=(state.bad_in_a_row + bad) * bad,
    )
    metrics = {
        'grad_norm': grad_norm,
        'skipped': state.skipped,
        'bad_in_a_row': state.bad_in_a_row,
    }
    return state, metrics
