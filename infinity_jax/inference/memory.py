"""The memory that generation will need, estimated before anything large is loaded."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from infinity_jax.config import (
    ModelConfigs,
    QuantizationConfig,
    TokenizerConfig,
    pixels_per_token,
    required,
)
from infinity_jax.tokenizer.tiled_decoder import decoding_bytes
from infinity_jax.transformer.attention_ops import chunk_length
from infinity_jax.weights.placement import decoder_params, placed_shapes

GB = 10**9
STREAMS = 6  # copies of the last scale's float32 residual stream: norms, gates, sums


@dataclasses.dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one program call that generates `batch` images.

    Attributes:
      transformer, tokenizer, text_encoder: weights in their dtypes on the device.
      cache: keys and values of self-attention, without the last scale.
      activations: the transformer's at its last scale, its attention scores included.
      decoder: feature maps at full resolution, once transformer and cache are done.
    """

    batch: int
    transformer: int
    tokenizer: int
    text_encoder: int
    cache: int
    activations: int
    decoder: int

    @property
    def work(self) -> int:
        """All but the weights; the decoder reuses the memory of the cache."""
        return max(self.cache + self.activations, self.decoder)

    def total(self, offload_text: bool = False) -> int:
        """Bytes at the peak. An offloaded text encoder uses the memory of the later cache."""
        networks = self.transformer + self.tokenizer
        if offload_text:
            return networks + max(self.text_encoder, self.work)
        return networks + self.text_encoder + self.work


def estimate_memory(
    configs: ModelConfigs,
    batch: int,
    *,
    guided: bool = True,
    text_length: int | None = None,
    on_cpu: bool = False,
    cpu_mesh: Mapping[str, int] = MappingProxyType({}),
    quantization: QuantizationConfig = QuantizationConfig(),
) -> MemoryEstimate:
    """Bytes for generating `batch` images at once.

    A CPU multiplies in float32: XLA makes float32 copies of all 16-bit kernels, and activations of
    that width.

    Args:
      configs: of a complete model, and the token grids.
      batch: images.
      guided: whether scales have guidance, which doubles the transformer's rows.
      text_length: tokens that prompts are padded to; None: all that the model reads.
      on_cpu: of the devices.
      cpu_mesh: sizes of the mesh axes of CPU devices, which decode at the same time in one memory.
      quantization: the formats of weights and cache.

    Raises:
      UserError: a part of the model is absent.
    """
    transformer = required(configs.transformer, 'transformer')
    tokenizer = required(configs.tokenizer, 'tokenizer')
    schedule = required(configs.schedule, 'schedule')
    weights = _weights(transformer, transformer.dtype, quantization)
    copies = 2 * (_weights(transformer, 'float32') - weights) if on_cpu else 0
    item = jnp.dtype(transformer.dtype).itemsize
    rows = batch * (2 if guided else 1)
    earlier, every = schedule.spans[-1]
    last = every - earlier
    width = transformer.width
    cache_item = 1 + 4 / transformer.head_dim if quantization.cache == 'int8' else item
    cache = round(2 * transformer.depth * rows * earlier * width * cache_item)
    length = text_length or transformer.text_length
    text_cache = 2 * transformer.depth * rows * length * width * item
    item = 4 if on_cpu else item
    streams = STREAMS * rows * last * width * 4
    prefix = 2 * rows * every * width * item  # one layer's keys and values, joined to the cache's
    hidden = 2 * rows * last * transformer.hidden_width * item  # before and after the GELU
    # XLA's attention keeps float32 scores of a chunk and, in the products' dtype, their softmax.
    heads = rows * transformer.num_heads
    scores = heads * chunk_length(heads, last, every) * every * (4 + item)
    height, width_px = schedule.image_size(pixels_per_token(transformer, tokenizer))
    shares = cpu_mesh.get('data', 1) * cpu_mesh.get('fsdp', 1)
    decoding = decoding_bytes(tokenizer, -(-batch // shares), height, width_px)
    return MemoryEstimate(
        batch=batch,
        transformer=weights,
        tokenizer=_weights(tokenizer, 'float32'),
        text_encoder=_weights(required(configs.text, 'text encoder'), configs.text_products),
        cache=cache,
        activations=copies + text_cache + streams + prefix + max(scores, hidden),
        decoder=math.prod(cpu_mesh.values()) * decoding,
    )


@functools.lru_cache(maxsize=16)  # the shapes take a trace, and every batch size asks for them
def _weights(
    config: Any, product_dtype: str, quantization: QuantizationConfig = QuantizationConfig()
) -> int:
    """Bytes of a part's weights as `place` puts them on a device."""
    shapes = placed_shapes(config, product_dtype, quantization)
    if isinstance(config, TokenizerConfig):
        shapes = decoder_params(shapes)
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(shapes))


def describe(estimate: MemoryEstimate, offload_text: bool = False) -> str:
    """The total and its parts in GB, as text."""
    names = {'transformer': estimate.transformer, 'tokenizer': estimate.tokenizer}
    names['text encoder (off the device once done)' if offload_text else 'text encoder'] = (
        estimate.text_encoder
    )
    names |= {'cache': estimate.cache, 'activations or decoder': estimate.work - estimate.cache}
    parts = ', '.join(f'{name} {size / GB:.1f}' for name, size in names.items())
    return f'{estimate.total(offload_text) / GB:.1f} GB ({parts})'


def on_one_device(estimate: MemoryEstimate, sizes: dict[str, int]) -> MemoryEstimate:
    """Memory of one device of a mesh, given the estimate for its share of the batch."""
    tensor = sizes.get('tensor', 1)
    split = sizes.get('fsdp', 1) * tensor
    return dataclasses.replace(
        estimate,
        transformer=estimate.transformer // split,
        tokenizer=estimate.tokenizer // sizes.get('fsdp', 1),
        text_encoder=estimate.text_encoder // split,
        cache=estimate.cache // tensor,
        activations=estimate.activations // tensor,
    )
