"""A model folder to a model that is ready to generate: memory planned, weights in place."""

import dataclasses
import os
import pathlib
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from infinity_jax.config import (
    AUTO,
    ModelConfigs,
    QuantizationConfig,
    required,
)
from infinity_jax.inference.executables import Executables
from infinity_jax.inference.memory_plan import plan_memory
from infinity_jax.inference.resolution import budget_line, choose_schedule
from infinity_jax.inference.sampling import check_unguided
from infinity_jax.inference.warmup import GenerationRequest, calls_for
from infinity_jax.runtime.host_texts import gather_texts
from infinity_jax.sharding import MeshConfig, in_mesh, lack_of_bfloat16, make_mesh
from infinity_jax.transformer.attention_choice import choose
from infinity_jax.transformer.card_dtype import check_dtype
from infinity_jax.transformer.lora import Updates, attach, merge
from infinity_jax.transformer.splash import SMALL_BLOCK
from infinity_jax.weights.adapter_file import Adapter, read_updates
from infinity_jax.weights.model_folder import LoadedModel, load_model, read_configs
from infinity_jax.weights.placement import (
    PlacedModel,
    check_complete,
    on_card,
    place_parts,
    platform_of,
    with_text_dtype,
)


@dataclasses.dataclass(frozen=True)
class ReadyModel:
    """A model folder, prepared for generation.

    Attributes:
      model: with its weights in place.
      batch: images per program call that fit into memory.
      executables: the folder's store of compiled programs.
    """

    model: PlacedModel
    batch: int
    executables: Executables


def read_for_generation(
    folder: pathlib.Path,
    dtype: str | None = None,
    text_dtype: str = '',
    attention: str | None = None,
    text_encoder: str | None = None,
    mesh: MeshConfig | Mesh | None = None,
    **size: Any,
) -> ModelConfigs:
    """The configurations of a complete model folder, with the token grids of an image size.

    Warns in one line about a pixel budget that the model was not trained at.

    Args:
      folder: a model folder.
      dtype: of the products inside blocks; None: as in its configuration, but float32 in place of
        bfloat16 on a card that lacks it, with a line on standard error.
      text_dtype: of the text encoder's products; '': see `with_text_dtype`.
      attention: its implementation; None: 'auto', see `attention_choice.choose`.
      text_encoder: the memory that holds it, 'device' or 'host'; None: 'auto', see `ModelConfigs`.
      mesh: the devices, see `load_for_generation`.
      size: see `choose_schedule`.

    Raises:
      UserError: no such folder, a part is absent, it cannot generate this size, or the card lacks
        the named dtype.
    """
    configs = read_configs(folder)
    check_complete(configs, ('transformer', 'tokenizer', 'text'))
    configs = _with_dtype(dataclasses.replace(configs, text_dtype=text_dtype), dtype, mesh)
    platform = platform_of(mesh) if isinstance(mesh, Mesh) else None
    configs = with_text_dtype(configs, platform=platform)
    schedule = choose_schedule(configs, **size)
    if line := budget_line(configs, schedule):
        warnings.warn(line, stacklevel=3)
    return dataclasses.replace(
        configs,
        schedule=schedule,
        attention=attention or AUTO,
        text_encoder=text_encoder or AUTO,
    )


def load_for_generation(
    folder: pathlib.Path,
    configs: ModelConfigs,
    *,
    max_batch: int,
    mesh: MeshConfig | Mesh | None = None,
    quantization: QuantizationConfig = QuantizationConfig(),
    request: GenerationRequest | None = None,
    text_length: int | None = None,
    guided: bool = True,
    verify: bool = True,
    adapters: Sequence[str | os.PathLike[str] | Adapter] = (),
) -> ReadyModel:
    """Loads the weights; the programs of the first call are loaded or compiled meanwhile.

    Memory is estimated before any weight is read, see `memory_plan`: where that makes the model
    fit, the text encoder leaves the device between calls, fewer images are generated at once, and
    weights and cache whose format is 'auto' are kept in 8 bits.

    Args:
      folder: a model folder.
      configs: of `read_for_generation`.
      max_batch: images per program call, at most.
      mesh: the devices that share the work, or how all of them do; None: the default device.
      quantization: lossy savings of memory.
      request: the first call that will be made.
      text_length: tokens that prompts are padded to and cut at; None: all that the model reads.
      guided: whether any call has guidance; without, half of the cache is planned for.
      verify: whether weights are compared with their hashes, see `load_model`.
      adapters: LoRA adapters, see `Adapter.parse`. On one device they are merged into kernels in
        full precision; kernels in 8 bits, or of several devices, stay as they are, and the adapters
        are applied next to them.

    Raises:
      UserError: damaged weights, adapters that do not fit, too little memory, attention that does
        not run here, or a request with guidance against `guided`.
    """
    if request is not None and not guided:
        check_unguided(request.sampling.guidance, request.sampling.guided)
    transformer = required(configs.transformer, 'transformer')
    updates = read_updates(adapters, transformer)
    devices = make_mesh(mesh, setting='{} in MeshConfig') if isinstance(mesh, MeshConfig) else mesh
    configs = with_text_dtype(configs, platform=platform_of(devices))
    _check_attention(configs, devices)
    plan = plan_memory(
        configs, max_batch, devices, quantization, guided=guided, text_length=text_length
    )
    if devices is not None and len({device.process_index for device in devices.devices.flat}) > 1:
        # All processes run one program; each of them may have another amount of memory free.
        at_once = min(map(int, gather_texts(str(plan.batch))))
        plan = dataclasses.replace(plan, batch=at_once)
    quantization = plan.quantization
    executables = Executables(folder if devices is None else None)
    attached = {} if _merges(quantization, devices) else updates
    if request is not None and devices is None:
        for call in calls_for(request, configs, plan.batch, quantization, text_length, attached):
            executables.prepare(*call)

    def load(part: str) -> LoadedModel:
        loaded = load_model(folder, None, (part,), devices, configs, verify=verify)
        return with_adapters(loaded, updates, quantization, devices)

    model = place_parts(load, configs, quantization, devices, plan.offload_text)
    return ReadyModel(model, plan.batch, executables)


def _with_dtype(
    configs: ModelConfigs, dtype: str | None, mesh: MeshConfig | Mesh | None
) -> ModelConfigs:
    """The configurations with the dtype of the transformer's products: `read_for_generation`."""
    devices = mesh if isinstance(mesh, Mesh) else None
    lack = lack_of_bfloat16(devices)
    if dtype is None:
        return on_card(configs, lack)
    check_dtype(dtype, lack, 'dtype', 'leave out --dtype, or set it to float32')
    transformer = required(configs.transformer, 'transformer')
    return dataclasses.replace(configs, transformer=dataclasses.replace(transformer, dtype=dtype))


def with_adapters(
    loaded: LoadedModel,
    updates: Updates,
    quantization: QuantizationConfig = QuantizationConfig(),
    mesh: Mesh | None = None,
) -> LoadedModel:
    """A loaded model with LoRA updates in its transformer, if it has one.

    Args:
      loaded: before it is placed.
      updates: see `read_updates`.
      quantization, mesh: of the placed model. On one device the updates are merged into kernels in
        full precision; kernels in 8 bits, or of several devices, have them next to them.
    """
    params = loaded.transformer_params
    if not updates or params is None:
        return loaded
    if _merges(quantization, mesh):
        dtype = jnp.dtype(required(loaded.configs.transformer, 'transformer').dtype)
        params = merge(params, updates, dtype)
    else:
        params = attach(params, updates)
    return dataclasses.replace(loaded, transformer_params=params)


def _merges(quantization: QuantizationConfig, mesh: Mesh | None) -> bool:
    return mesh is None and quantization.weights != 'int8'


def _check_attention(configs: ModelConfigs, mesh: Mesh | None) -> None:
    """Raises `UserError` where the chosen attention does not run, before any weight is read."""
    config = required(configs.transformer, 'transformer')
    shape = (1, SMALL_BLOCK, config.num_heads, config.head_dim)
    queries = jax.ShapeDtypeStruct(shape, jnp.dtype(config.dtype))
    check = choose if mesh is None else in_mesh(mesh, choose)
    check(configs.attention, queries)
