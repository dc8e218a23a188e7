"""Small models whose weights make every part matter; fresh ones start with almost closed gates."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from infinity_jax.config import TextConfig, TokenizerConfig, TransformerConfig
from infinity_jax.scales import ScaleSchedule
from infinity_jax.tokenizer.autoencoder import tokenizer_shapes
from infinity_jax.transformer.model import transformer_shapes

TRANSFORMER = TransformerConfig(
    depth=2, width=32, num_heads=2, bits=4, text_channels=16, text_length=8, dtype='float32'
)
TOKENIZER = TokenizerConfig(
    bits=4, base_channels=8, channel_multipliers=(1, 2), residual_blocks=1, norm_groups=4
)
TEXT = TextConfig(
    vocab_size=0, width=16, num_layers=1, num_heads=2, head_dim=8, ffn_width=32, buckets=8
)
# Compiler options for programs that run once: compiling costs more than they do.
QUICK_COMPILE = {'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True}
SCHEDULE = ScaleSchedule.free(((1, 1), (2, 2), (3, 2), (4, 4)))


def lively(shapes, seed=0):
    """Random float32 arrays of the given shapes, of sizes that let signals through."""
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        name, values = path[-1].key, rng.standard_normal(leaf.shape)
        if name == 'kernel':
            convolution = leaf.ndim == 4
            fan_in = math.prod(leaf.shape[:-1]) if convolution else leaf.shape[-2]
            values /= fan_in**0.5
        elif name in ('scale', 'log_scale'):
            values = 1 + 0.3 * values
        else:
            values *= 0.3
        return jnp.asarray(values, jnp.float32)

    return jax.tree_util.tree_map_with_path(fill, shapes)


@functools.cache
def transformer_variables(config=TRANSFORMER, seed=0):
    return {'params': lively(transformer_shapes(config), seed)}


@functools.cache
def tokenizer_variables(config=TOKENIZER, seed=0):
    return {'params': lively(tokenizer_shapes(config), seed)}


def text(batch=3, seed=0, config=TRANSFORMER):
    """Text features (B, T, E), padded with noise that nothing may read, and lengths (B,)."""
    rng = np.random.default_rng(seed)
    shape = (batch, config.text_length, config.text_channels)
    lengths_B = np.resize(np.array([5, config.text_length, 2], np.int32), batch)
    return jnp.asarray(rng.standard_normal(shape), jnp.float32), jnp.asarray(lengths_B)
