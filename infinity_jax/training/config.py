"""The configuration that all training tasks share, and the random keys that its seed gives."""

import dataclasses

import jax

from infinity_jax.data.config import DataConfig
from infinity_jax.ranges import COUNT, SEED, Range, check_ranges
from infinity_jax.runtime.local_files import check_paths
from infinity_jax.sharding import MeshConfig
from infinity_jax.training.optimizer import OptimizerConfig

HELD_OUT_SEED = 1  # of the held-out images in every run, so that their metrics compare
_RANGES = {
    'steps': COUNT,
    'batch_size': Range(1, 2**20),
    'accumulate_steps': Range(1, 2**20),
    'seed': SEED,
    'log_every': COUNT,
    'eval_every': COUNT,
    'eval_batches': COUNT,
    'sample_every': COUNT,
    'first_sample': Range(0, 10**9),
    'checkpoint_every': COUNT,
    'keep_checkpoints': COUNT,
    'max_bad_steps': COUNT,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The fields that all tasks share; each task adds its own in a subclass."""

    task: str
    run_dir: str  # checkpoints, metrics, samples and the final model go here
    steps: int
    batch_size: int  # images per step, over all devices and hosts
    accumulate_steps: int = 1  # parts of a batch that are processed one after the other
    data: DataConfig
    optimizer: OptimizerConfig
    seed: int = 0  # of the weights, the data order and all random choices
    init_from: str = ''  # model or run folder whose weights to start from; '': random
    mesh: MeshConfig = MeshConfig()
    log_every: int = 10  # steps between lines in metrics.jsonl
    eval_every: int = 200  # steps between held-out evaluations
    eval_batches: int = 4  # held-out batches in one evaluation, always the same ones
    sample_every: int = 1000  # steps between sample images
    first_sample: int = 0  # a step with sample images before those of sample_every; 0: none
    checkpoint_every: int = 500  # steps between checkpoints
    keep_checkpoints: int = 2  # newest ones kept
    max_bad_steps: int = 20  # successive steps without finite loss and gradient that end the run

    def __post_init__(self):
        check_ranges(self, '', _RANGES)
        check_paths(self, '', ('run_dir', 'init_from'))

    @property
    def small(self) -> bool:
        """Whether the model's products are too small for several cores to share one of them."""
        return False

    @property
    def device_per_core(self) -> bool:
        """Whether training on a CPU uses each core as a device (see `runtime.cpu_devices`)."""
        return self.small and self.mesh == MeshConfig()


def init_key(seed: int) -> jax.Array:
    """The key of the initial weights; independent of the keys of the steps."""
    return jax.random.split(jax.random.key(seed))[0]


def step_key(seed: int, step: jax.Array) -> jax.Array:
    """The key of all randomness in one step."""
    return jax.random.fold_in(jax.random.split(jax.random.key(seed))[1], step)
