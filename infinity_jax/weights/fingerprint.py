"""Fingerprints of weights: equal for the same weights in any dtype, shard by shard or whole.

A model folder records the fingerprint of the tokenizer whose codes its transformer learned. The
same d, names and shapes say nothing about what a code means.
"""

import dataclasses
import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax.traverse_util import flatten_dict

from infinity_jax.config import TokenizerConfig
from infinity_jax.weights.part_weights import Params

_FACTOR = 0x9E3779B1  # of the position along an axis


def partner_fingerprint(config: TokenizerConfig, params: Params) -> str:
    """Fingerprint of a tokenizer as the partner of a transformer: of its encoder alone.

    A decoder may be trained further, or be deeper, and still decode the same codes.
    """
    described = dataclasses.asdict(dataclasses.replace(config, decoder_blocks=0))
    return fingerprint(described, params['encoder'])


def fingerprint(described: dict[str, Any], params: Params) -> str:
    """A digest of a JSON description and of weights, on the host or on devices.

    Weights are compared as bfloat16, so a model that was stored in that dtype counts as the same.
    Storing in float16 changes it, see `kept_by`.
    """
    sums = {
        name: (leaf.shape, _sums(leaf))
        for name, leaf in sorted(flatten_dict(params, sep='.').items())
    }
    text = json.dumps([described, sums], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def kept_by(dtype: Any, fingerprint: str) -> str:
    """The fingerprint of the same weights once they are stored in a dtype; '': unknown.

    Rounding to float16 and then to bfloat16 is not rounding to bfloat16.
    """
    return '' if dtype is not None and np.dtype(dtype) == np.float16 else fingerprint


def _sums(leaf: Any) -> list[int]:
    """Sums of the weights' bits, plain and weighted by position, modulo 2^32."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return np.asarray(_sums_on_mesh(leaf)).tolist()
    words = np.asarray(leaf).astype(ml_dtypes.bfloat16).view(np.uint16)
    # The weight of a position is a sum over axes, so sums along all other axes are enough.
    weighted, factor = 0, 1
    for axis in reversed(range(words.ndim)):
        others = tuple(other for other in range(words.ndim) if other != axis)
        along = words.sum(axis=others, dtype=np.uint32)
        position = np.arange(1, len(along) + 1, dtype=np.uint32)
        weighted += factor * int((along * position).sum(dtype=np.uint32))
        factor = factor * _FACTOR % 2**32
    return [int(words.sum(dtype=np.uint32)), weighted % 2**32]


@jax.jit
def _sums_on_mesh(leaf: jax.Array) -> jax.Array:
    """`_sums` of an array that several processes hold; exact in any order."""
    words = jax.lax.bitcast_convert_type(leaf.astype(jnp.bfloat16), jnp.uint16).astype(jnp.uint32)
    position = jnp.zeros(leaf.shape, jnp.uint32)
    for axis in range(leaf.ndim):
        along = jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
        position = position * jnp.uint32(_FACTOR) + along + 1
    return jnp.stack([words.sum(dtype=jnp.uint32), (words * position).sum(dtype=jnp.uint32)])
