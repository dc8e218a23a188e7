"""Splash attention, the Pallas kernel for TPU, under a mask that the kernel computes.

One call serves a whole training sequence. Query i sees the keys [0, ends[i]). Blocks in which no
query sees a key are skipped, and no array of all pairs of queries and keys exists.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from infinity_jax.sharding import activation_spec, axis_size

SMALL_BLOCK = 128  # rows and columns of a block; the lanes of a TPU register
BLOCK = 512  # the same for long sequences, where fewer, larger blocks cost less
LONG = 4 * BLOCK  # tokens; for shorter sequences, padding to large blocks would cost more
MAX_COLUMNS = 7 * BLOCK  # keys per step of a gradient kernel: what its memory allows
MAX_PARTS = 6  # partial gradients of the queries that are summed
ATTENDED = 'attended'  # checkpoint name of attended values, for `remat.POLICIES`


def splash_attend(
    q_BLNH: jax.Array,
    k_BSNH: jax.Array,
    v_BSNH: jax.Array,
    *,
    scale: float = 1.0,
    ends_L: np.ndarray | None = None,
    key_lengths_B: jax.Array | None = None,
) -> jax.Array:
    """softmax(scale · q·k) v, (B, L, N, H).

    Under a mesh the batch stays split over data and fsdp, heads over tensor and queries over
    sequence; each device holds all keys. On CPU the kernel is interpreted, which is slow.

    Args:
      scale: factor of the scores.
      ends_L: query i sees the keys [0, ends[i]), at least one. Queries beyond its end see all
        keys. None: every query sees every key, as in attention to text. Text has few keys, so its
        attended values are cheaper to recompute than to keep and have no checkpoint name.
      key_lengths_B: number of keys that are no padding, at least one; None: all.
    """
    # Pallas takes half a second to import, and most programs have no splash attention.
    from jax.experimental.pallas.ops.tpu.splash_attention import FullMask, SegmentIds

    from infinity_jax.transformer.splash_kernel import PrefixMask, make_kernel

    mesh, named = jax.sharding.get_abstract_mesh(), ends_L is not None
    batch, length, heads, head_dim = q_BLNH.shape
    keys = k_BSNH.shape[1]
    block = block_of(length, keys)
    parts = axis_size('sequence')
    rows_of_block = query_block(length, block, parts)
    filled, filled_keys = _multiple(length, rows_of_block * parts), _multiple(keys, block)
    q_spec = activation_spec((batch, heads, filled, head_dim), ('batch', 'heads', 'length', None))
    local_heads = heads // (mesh.shape[q_spec[1]] if q_spec[1] else 1)

    # A mask that is equal for all queries covers the queries of one device: the library cannot
    # split a mask without partial blocks.
    shards = 1 if ends_L is None else parts
    rows = filled // parts * shards
    mask: FullMask | PrefixMask
    if ends_L is None and filled_keys == keys:
        mask = FullMask((rows, keys))
    else:
        ends_L = np.full(rows, keys) if ends_L is None else ends_L
        ends_L = np.pad(ends_L, (0, rows - ends_L.size), constant_values=keys)
        mask = PrefixMask(ends_L, filled_keys)
    blocks = kernel_blocks(filled_keys, block, rows_of_block)
    kernel = make_kernel(mask, local_heads, shards, blocks, ATTENDED if named else None)

    def attend(kernel, q_BNLH, k_BNSH, v_BNSH, key_lengths_B):
        arrays = (q_BNLH, k_BNSH, v_BNSH)
        if key_lengths_B is None:
            return jax.vmap(kernel)(*arrays)
        ones_BL = jnp.ones((q_BNLH.shape[0], q_BNLH.shape[2]), jnp.int32)
        real_BS = jnp.arange(filled_keys)[None] < key_lengths_B[:, None]
        return jax.vmap(kernel)(*arrays, SegmentIds(ones_BL, real_BS.astype(jnp.int32)))

    if not mesh.empty:
        of_keys = PartitionSpec(q_spec[0], q_spec[1], None, None)
        of_kernel = NamedSharding(mesh, PartitionSpec(None, q_spec[2] if shards > 1 else None))
        of_lengths = PartitionSpec(q_spec[0])
        attend = jax.shard_map(
            attend,
            in_specs=(
                kernel.manual_sharding_spec(of_kernel), q_spec, of_keys, of_keys,
                None if key_lengths_B is None else of_lengths,
            ),
            out_specs=q_spec,
            check_vma=False,
        )  # fmt: skip
    if q_BLNH.dtype == jnp.float32:
        attend = _at_highest_precision(attend)
    if scale != 1:  # the kernel has no scale
        q_BLNH = (q_BLNH.astype(jnp.float32) * scale).astype(q_BLNH.dtype)
    out_BNLH = attend(
        kernel,
        _heads_first(q_BLNH, filled),
        _heads_first(k_BSNH, filled_keys),
        _heads_first(v_BSNH, filled_keys),
        key_lengths_B,
    )
    return out_BNLH[:, :, :length].transpose(0, 2, 1, 3)


def filled_length(length: int) -> int:
    """`length` rounded up to whole large blocks where that costs little, else unchanged."""
    return _multiple(length, BLOCK) if length >= LONG else length


def block_of(length: int, keys: int) -> int:
    """Rows and columns of the blocks for these numbers of queries and keys."""
    return BLOCK if max(length, keys) >= LONG else SMALL_BLOCK


def query_block(length: int, block: int, parts: int = 1) -> int:
    """Rows of the blocks: the most for which these queries need no padding, else `block`.

    Args:
      length: all queries.
      block: the most rows.
      parts: devices that share the queries, the last of which may have fewer.
    """
    length = -(-length // parts)
    fitting = [rows for rows in range(2 * SMALL_BLOCK, block, SMALL_BLOCK) if length % rows == 0]
    return max(fitting) if fitting and length % block else block


def gradient_block(keys: int, block: int) -> int | None:
    """Keys per step of the fused gradient kernel; None: two separate kernels are used.

    The fused kernel writes a partial gradient of the queries for every step, which are summed
    afterwards. Where steps are few, this saves the second recomputation of the scores.
    """
    blocks = keys // block
    fitting = [n for n in range(1, blocks + 1) if blocks % n == 0 and n * block <= MAX_COLUMNS]
    return max(fitting) * block if blocks <= MAX_PARTS * max(fitting) else None


def whole_blocks(length: int, keys: int) -> int:
    """The number of keys rounded up to whole blocks, for this number of queries."""
    return _multiple(keys, block_of(length, keys))


def kernel_blocks(keys: int, block: int, rows: int) -> dict[str, Any]:
    """Block sizes of the kernel and its gradients, as keywords of `BlockSizes`."""
    sizes: dict[str, Any] = {'block_q': rows, 'block_kv': block, 'block_q_dkv': rows}
    columns = gradient_block(keys, block)
    if columns is None:
        sizes |= {'block_kv_dkv': block, 'block_q_dq': rows, 'block_kv_dq': block}
    else:
        sizes |= {'block_kv_dkv': columns, 'block_kv_dkv_compute': block}
    return sizes | {'use_fused_bwd_kernel': columns is not None}


def _at_highest_precision(attend: Any) -> Any:
    """`attend` with float32 products, also in its gradient, which is traced separately."""
    exact = jax.default_matmul_precision('highest')
    run = jax.custom_vjp(exact(attend))
    run.defvjp(exact(lambda *args: jax.vjp(attend, *args)), exact(lambda pull, g: pull(g)))
    return run


def _heads_first(x_BLNH: jax.Array, length: int) -> jax.Array:
    """(B, L, N, H) to (B, N, length, H), padded with zeros."""
    x_BNLH = x_BLNH.transpose(0, 2, 1, 3)
    return jnp.pad(x_BNLH, ((0, 0), (0, 0), (0, length - x_BNLH.shape[2]), (0, 0)))


def _multiple(length: int, of: int) -> int:
    """`length` rounded up to a multiple."""
    return -(-length // of) * of
