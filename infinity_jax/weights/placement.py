"""A model's weights, quantized and moved to the devices that generate."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import AbstractMesh, Mesh

from infinity_jax.config import (
    ModelConfigs,
    QuantizationConfig,
    TextConfig,
    TokenizerConfig,
    TransformerConfig,
    required,
)
from infinity_jax.errors import UserError
from infinity_jax.sharding import (
    batch_sharding,
    lack_of_bfloat16,
    replicated,
    shardings_of,
    target_platform,
)
from infinity_jax.text.tokenizer import TextTokenizer
from infinity_jax.transformer.card_dtype import for_card
from infinity_jax.transformer.int8 import SCALE, int8_shapes, quantize_kernels
from infinity_jax.weights.model_folder import LoadedModel
from infinity_jax.weights.part_weights import Params, part_shapes
from infinity_jax.weights.t5_folder import encoder_shapes

Config = TransformerConfig | TokenizerConfig | TextConfig
STACKS = ('blocks', 'layers')  # of the transformer and of the text encoder


@dataclasses.dataclass(frozen=True)
class PlacedModel:
    """A whole model whose weights are quantized and where generation reads them.

    Attributes:
      configs: of all parts.
      transformer_params: on the devices; the blocks' kernels in 8 bits if so quantized.
      tokenizer_params: of the decoder alone, on the devices.
      text_params: on the devices, or as numpy arrays on the host if offloaded.
      text_tokenizer: the text encoder's vocabulary.
      quantization: the formats of weights and cache.
      mesh: the devices that share the work; None: the default device.
      offload_text: the text encoder is on the device only while it encodes.
      read_tokenizer: returns the tokenizer's parameters with the encoder, which only editing uses.
    """

    configs: ModelConfigs
    transformer_params: Params
    tokenizer_params: Params
    text_params: Params
    text_tokenizer: TextTokenizer
    quantization: QuantizationConfig = QuantizationConfig()
    mesh: Mesh | None = None
    offload_text: bool = False
    read_tokenizer: Callable[[], Params | None] = lambda: None


def place_model(
    loaded: LoadedModel,
    quantization: QuantizationConfig = QuantizationConfig(),
    mesh: Mesh | None = None,
    offload_text: bool = False,
) -> PlacedModel:
    """Quantizes a loaded model and puts it on the devices, in float32 where they lack bfloat16.

    Args:
      loaded: a complete model. Arrays that are in place already stay there.
      quantization: the formats of weights and cache.
      mesh: the devices that share the work; None: the default device.
      offload_text: keep the text encoder's weights on the host between calls.

    Raises:
      UserError: a part is missing, or 8 bits on several devices.
    """
    check_complete(
        loaded, ('transformer_params', 'tokenizer_params', 'text_params', 'text_tokenizer')
    )
    configs = on_card(loaded.configs, lack_of_bfloat16(mesh))
    configs = with_text_dtype(configs, platform=platform_of(mesh))
    placed = place_parts(lambda part: loaded, configs, quantization, mesh, offload_text)
    tokenizer_params = loaded.tokenizer_params  # and not `loaded`, which would keep all weights
    return dataclasses.replace(placed, read_tokenizer=lambda: tokenizer_params)


def place_parts(
    load: Callable[[str], LoadedModel],
    configs: ModelConfigs,
    quantization: QuantizationConfig = QuantizationConfig(),
    mesh: Mesh | None = None,
    offload_text: bool = False,
) -> PlacedModel:
    """`place_model` of one part after the other, so that the host never holds two of them.

    Args:
      load: name of a part, as in `model_folder.PARTS`, to a model that has it.
      configs: of all parts.
      quantization, mesh, offload_text: see `place_model`.

    Raises:
      UserError: a part is missing, or 8 bits on several devices.
    """
    transformer = required(configs.transformer, 'transformer')
    tokenizer = required(configs.tokenizer, 'tokenizer')
    placed = {
        'transformer_params': place_transformer(
            required(load('transformer').transformer_params, 'transformer'),
            transformer,
            quantization,
            mesh,
        ),
        'tokenizer_params': place_decoder(
            required(load('tokenizer').tokenizer_params, 'tokenizer'), tokenizer, mesh
        ),
    }
    text = load('text_encoder')
    check_complete(text, ('text_params', 'text_tokenizer'))
    return PlacedModel(
        configs,
        text_params=place_text_encoder(
            required(text.text_params, 'text encoder'), configs, mesh, offload_text
        ),
        text_tokenizer=required(text.text_tokenizer, 'vocabulary'),
        quantization=quantization,
        mesh=mesh,
        offload_text=offload_text,
        read_tokenizer=lambda: load('tokenizer').tokenizer_params,
        **placed,
    )


def check_complete(model: LoadedModel | ModelConfigs, fields: Sequence[str]) -> None:
    """Raises `UserError` where one of these parts of a model is absent."""
    for field in fields:
        if getattr(model, field) is None:
            raise UserError(f'the model has no {field}; generation needs a complete model folder')


def place_transformer(
    params: Params,
    config: TransformerConfig,
    quantization: QuantizationConfig = QuantizationConfig(),
    mesh: Mesh | None = None,
) -> Params:
    """The transformer's parameters, quantized, on the devices."""
    return place(quantize_params(params, quantization, mesh), config.dtype, config, mesh)


def place_decoder(params: Params, config: TokenizerConfig, mesh: Mesh | None = None) -> Params:
    """The parameters of the tokenizer's decoder, in float32, on the devices."""
    return place(decoder_params(params), 'float32', config, mesh)


def place_text_encoder(
    params: Params, configs: ModelConfigs, mesh: Mesh | None = None, offload: bool = False
) -> Params:
    """The text encoder's parameters in the dtype of its products, on the devices or the host."""
    dtype = configs.text_products
    if offload:
        return hold(params, dtype)
    return place(params, dtype, required(configs.text, 'text encoder'), mesh)


def on_card(configs: ModelConfigs, lack: str) -> ModelConfigs:
    """`card_dtype.for_card` of a model, whose text encoder goes by the model's own dtype."""
    if lack:
        configs = with_text_dtype(configs, platform='gpu')
    transformer = for_card(required(configs.transformer, 'transformer'), lack)
    return dataclasses.replace(configs, transformer=transformer)


def with_text_dtype(
    configs: ModelConfigs, dtype: str = '', platform: str | None = None
) -> ModelConfigs:
    """The configurations with the dtype of the text encoder's products, unless they have one.

    Args:
      configs: of a model with a transformer.
      dtype: the dtype; '': on a GPU float16 next to a transformer in bfloat16, as in the released
        code, since it rounds eight times finer. Otherwise the transformer's.
      platform: of the devices; None: of the default one.
    """
    if configs.text_dtype and not dtype:
        return configs
    own = required(configs.transformer, 'transformer').dtype
    if not dtype and own == 'bfloat16' and (platform or target_platform()) == 'gpu':
        dtype = 'float16'
    return dataclasses.replace(configs, text_dtype=dtype or own)


def platform_of(mesh: Mesh | AbstractMesh | None) -> str | None:
    """The platform of a mesh's devices; None without a mesh, or for one without devices."""
    if mesh is None:
        return None
    device = mesh.abstract_device if isinstance(mesh, AbstractMesh) else mesh.devices.flat[0]
    return None if device is None else device.platform


def device_dtype(path: tuple[str, ...], product_dtype: Any) -> np.dtype:
    """The dtype that a parameter has on the device, by its path in the tree.

    Kernels inside the stacked layers have the dtype of their products. All else is a float32
    island (norms, modulation, conditioning, head, tokenizer), or too small to matter (biases).
    """
    product = path[0] in STACKS and path[-1] == 'kernel'
    return jnp.dtype(product_dtype if product else jnp.float32)


def quantize_params(
    params: Params, quantization: QuantizationConfig, mesh: Mesh | None = None
) -> Params:
    """The transformer's parameters in the format of `quantization`, before they are placed.

    Raises:
      UserError: 8 bits on several devices.
    """
    if quantization.weights != 'int8' or any(path[-1] == SCALE for path in flatten_dict(params)):
        return params
    if mesh is not None:
        raise UserError('weights in int8 are for one device; give no mesh, or weights in full')
    return quantize_kernels(params)


def decoder_params(tokenizer: Params) -> Params:
    """The decoder's part of a tokenizer's tree; generation does not use the encoder."""
    return {'decoder': tokenizer['decoder']}


def place(params: Params, product_dtype: Any, config: Config, mesh: Mesh | None = None) -> Params:
    """Puts parameters on the default device, or onto the mesh by their logical axes.

    Arrays that are on the mesh already stay where they are. Each host array without another owner
    is freed once it is on the device.

    Args:
      params: numpy or jax arrays.
      product_dtype: see `device_dtype`.
      config: of the part that has these parameters.
      mesh: None for a single device.
    """
    shardings = {} if mesh is None else flatten_dict(shardings_on(config, mesh))
    other = None if mesh is None else replicated(mesh)  # adapters

    def put(path: tuple[str, ...], leaf: Any) -> jax.Array:
        dtype = leaf.dtype if leaf.dtype == jnp.int8 else device_dtype(path, product_dtype)
        if not isinstance(leaf, jax.Array):
            sharding = shardings.get(path, other)
            return jax.device_put(np.asarray(leaf).astype(dtype, copy=False), sharding)
        if mesh is not None and leaf.sharding.device_set != set(mesh.devices.flat):
            leaf = jax.device_put(leaf, shardings[path])
        return leaf.astype(dtype)

    flat = flatten_dict(params)
    del params
    return unflatten_dict({path: put(path, flat.pop(path)) for path in tuple(flat)})


def placed_shapes(
    config: Config, product_dtype: Any, quantization: QuantizationConfig = QuantizationConfig()
) -> Params:
    """Shapes and dtypes of a part's parameters once `place` has put them on a device."""
    flat = flatten_dict(_shapes_of(config)(config)).items()
    shapes = unflatten_dict(
        {
            path: jax.ShapeDtypeStruct(leaf.shape, device_dtype(path, product_dtype))
            for path, leaf in flat
        }
    )
    in_8_bits = quantization.weights == 'int8' and isinstance(config, TransformerConfig)
    return int8_shapes(shapes) if in_8_bits else shapes


def hold(params: Params, product_dtype: Any) -> Params:
    """Parameters in the dtypes that `place` gives them, but as numpy arrays on the host."""
    flat = flatten_dict(params).items()
    cast = {path: np.asarray(a).astype(device_dtype(path, product_dtype)) for path, a in flat}
    return unflatten_dict(cast)


def share_batch(rows: Any, mesh: Mesh | None) -> Any:
    """Puts rows of a batch, one array or a tree, on the device or splits them over the mesh."""
    return jax.device_put(rows, None if mesh is None else batch_sharding(mesh))


def shardings_on(config: Config, mesh: Mesh) -> Params:
    """The sharding of each parameter of a part, from its logical axes."""
    return shardings_of(_shapes_of(config)(config, boxed=True), mesh)


def _shapes_of(config: Config) -> Callable[..., Params]:
    return encoder_shapes if isinstance(config, TextConfig) else part_shapes
