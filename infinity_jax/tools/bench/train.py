"""A training step of the transformer, for `infinity-jax bench train`."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from infinity_jax.config import TextConfig
from infinity_jax.data.batch import Batch
from infinity_jax.data.config import DataConfig
from infinity_jax.runtime.cpu_devices import use_cores
from infinity_jax.runtime.distributed import launcher
from infinity_jax.runtime.hub import DEMO_FOLDER
from infinity_jax.sharding import in_mesh, init_sharded, make_mesh, shardings_of
from infinity_jax.text.t5 import T5Encoder
from infinity_jax.tokenizer.autoencoder import Autoencoder
from infinity_jax.tools.bench.products import products_of
from infinity_jax.tools.bench.stage import Measured, Stage, measure
from infinity_jax.tools.bench.workload import (
    DEMO,
    Workload,
    check_batch,
    preset,
    random_features,
    random_params,
    schedule_of,
)
from infinity_jax.training.optimizer import (
    OptimizerConfig,
    TrainState,
    make_optimizer,
    new_state,
)
from infinity_jax.training.transformer.config import T2IConfig, TextTraining
from infinity_jax.training.transformer.step import (
    Models,
    WithFallback,
    init_state,
    jit_step,
    train_step,
)
from infinity_jax.transformer.lora import LoraConfig
from infinity_jax.transformer.model import Transformer, transformer_shapes
from infinity_jax.weights.model_folder import read_configs
from infinity_jax.weights.placement import share_batch
from infinity_jax.weights.t5_folder import encoder_shapes

STEPS = 1000  # of the run; only its schedules use the number
LEARNING_RATE = 6e-5


def bench_train(workload: Workload, mesh: Mesh | None = None, **options: Any) -> Measured:
    """Measures `train_step`.

    Each step continues from the state of the previous one, which is donated as in training. Image
    features are stored. So are text features, but the demo trains its text encoder as its training
    run does.

    Args:
      workload: model and images.
      mesh: the devices that share the work; None: the default device.
      options: of `measure`.
    """
    check_batch(workload, mesh)
    if mesh is None:
        mesh = make_mesh(devices=jax.local_devices()[:1])
    config, models = _run_of(workload)
    text_config = config.text.encoder
    frozen = {}
    if config.lora.rank:
        params = random_params(
            transformer_shapes, config.transformer, config.transformer.dtype, mesh
        )
        frozen['transformer'] = params
    boxed = jax.eval_shape(lambda key: init_state(key, models, config), jax.random.key(0))
    shardings = shardings_of(boxed, mesh)
    state = _state(config, models, text_config, mesh, shardings)
    batch = share_batch(_batch(workload, models, text_config), mesh)
    groups = products_of(
        functools.partial(train_step, models=models, config=config), state, frozen, batch
    )
    step = in_mesh(
        mesh, WithFallback(lambda models: jit_step(models, config, shardings, mesh), models)
    )

    def run() -> Any:
        nonlocal state
        state, metrics = step(state, frozen, batch)
        return metrics

    return measure([Stage('train', run, groups)], dtype=workload.precision, **options)


def use_training_devices(workload: Workload) -> int:
    """Makes the CPU as many devices as training does, see `runtime.cpu_devices`.

    Call it before any device is used.

    Returns:
      the number of devices that share the batch: 1 on an accelerator, in one of several processes,
      and if the batch cannot be shared evenly.
    """
    if launcher() is not None or not _run_of(workload)[0].device_per_core:
        return 1
    use_cores(workload.batch)
    devices = jax.local_device_count()
    return devices if jax.default_backend() == 'cpu' and workload.batch % devices == 0 else 1


def _run_of(workload: Workload) -> tuple[T2IConfig, Models]:
    """The run of a workload, and its networks."""
    config, tokenizer = preset(workload.preset, workload.precision)
    text_config = None
    if workload.preset == DEMO and not workload.lora:  # adapters are trained alone
        text_config = read_configs(DEMO_FOLDER).text
    run_config = T2IConfig(
        task='t2i',
        run_dir='',
        steps=STEPS,
        batch_size=workload.batch,
        data=DataConfig(),
        optimizer=OptimizerConfig(LEARNING_RATE),
        transformer=config,
        text=TextTraining(encoder=text_config, train=text_config is not None),
        attention=workload.attention,
        remat=workload.remat,
        lora=LoraConfig(rank=workload.lora),
    )
    text_encoder = T5Encoder(text_config or TextConfig(), jnp.dtype(workload.precision))
    transformer = Transformer(config, run_config.attention, run_config.remat, run_config.layers)
    schedules = (schedule_of(workload),)
    return run_config, Models(transformer, Autoencoder(tokenizer), text_encoder, schedules)


def _state(
    config: T2IConfig,
    models: Models,
    text_config: TextConfig | None,
    mesh: Mesh,
    shardings: Any,
) -> TrainState:
    """The state before the first step, of random weights or of new adapters."""
    if config.lora.rank:
        return init_sharded(lambda key: init_state(key, models, config), mesh, jax.random.key(0))
    params = {'transformer': random_params(transformer_shapes, config.transformer, mesh=mesh)}
    if text_config is not None:
        params['text'] = random_params(encoder_shapes, text_config, mesh=mesh)
    optimizer = make_optimizer(config.optimizer, STEPS)
    return jax.jit(lambda params: new_state(params, optimizer), out_shardings=shardings)(params)


def _batch(workload: Workload, models: Models, text_config: TextConfig | None) -> Batch:
    """Random features of images, and of texts unless an encoder is trained, which reads ids."""
    config, rows = models.transformer.config, workload.batch
    length = min(workload.text_length, config.text_length)
    grid = models.schedules[0].code_grids(config.spatial_patchify)[-1]
    batch = Batch(
        features_Bhwd=random_features((rows, *grid, config.bits)),
        lengths_B=np.full((rows,), length, np.int32),
    )
    if text_config is None:
        return batch._replace(text_BTE=random_features((rows, length, config.text_channels)))
    ids = np.random.default_rng(0).integers(0, text_config.vocab_size, (rows, length))
    return batch._replace(ids_BT=ids.astype(np.int32))
