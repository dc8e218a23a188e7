"""Attention on TPU: splash attention under a computed mask.

One kernel call serves a whole training sequence. A query sees the keys [0, its end); blocks of
pairs that no query sees are skipped, and no array of all pairs exists.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import (
    BlockSizes,
    FullMask,
    Mask,
    MultiHeadMask,
    SegmentIds,
    make_splash_mha,
    splash_attention_mask,
)
from jax.sharding import NamedSharding, PartitionSpec

from infinity_jax.sharding import activation_spec, axis_size, target_platform

SMALL_BLOCK = 128  # rows and columns of a block; the lanes of a TPU register
BLOCK = 512  # the same for long sequences, where few larger blocks cost less
LONG = 4 * BLOCK  # tokens; below it, filling up to whole large blocks would waste more
MAX_COLUMNS = 7 * BLOCK  # of keys that a gradient kernel holds: what its memory allows
MAX_PARTS = 6  # of the queries' gradient that are summed
ATTENDED = 'attended'  # name of outputs that a rematerialisation policy may keep


def _sees(end: Any, key: Any) -> Any:
    return key < end


class PrefixMask(splash_attention_mask._ComputableMask):
    """Query i sees the keys [0, ends[i]).

    `q_sequence` usually holds the queries' own positions and reaches `mask_function` inside the
    kernel; here it holds their ends. The base class is private, and the only way to such a mask.
    """

    def __init__(self, ends_L: np.ndarray, num_keys: int):
        super().__init__((ends_L.size, num_keys), _sees)
        self.q_sequence = np.asarray(ends_L, np.int32)

    def _identity(self) -> tuple[int, bytes]:
        return self.shape[1], self.q_sequence.tobytes()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PrefixMask) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())


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
    sequence, where each device sees all keys. On CPU the kernel is interpreted, slowly.

    Args:
      ends_L: query i sees the keys [0, ends[i]), at least one; a query without one sees all.
        None: all see all, as of text. That has few keys: to attend to it again costs less than to
        keep what came out, so no rematerialisation policy does.
      key_lengths_B: of padded keys, how many are real, at least one.
    """
    mesh, kept = jax.sharding.get_abstract_mesh(), ends_L is not None
    batch, length, heads, width = q_BLNH.shape
    keys = k_BSNH.shape[1]
    block = block_of(length, keys)
    parts = axis_size('sequence')
    filled, filled_keys = _multiple(length, block * parts), _multiple(keys, block)
    q_spec = activation_spec((batch, heads, filled, width), ('batch', 'heads', 'length', None))
    local_heads = heads // (mesh.shape[q_spec[1]] if q_spec[1] else 1)

    # A mask that is the same for all queries is made for the share of one device: the library
    # cannot cut a mask without partial blocks.
    cuts = 1 if ends_L is None else parts
    rows = filled // parts * cuts
    if ends_L is None and filled_keys == keys:
        mask = FullMask((rows, keys))
    else:
        ends_L = np.full(rows, keys) if ends_L is None else ends_L
        ends_L = np.pad(ends_L, (0, rows - ends_L.size), constant_values=keys)
        mask = PrefixMask(ends_L, filled_keys)
    kernel = _make_kernel(mask, block, local_heads, cuts, kept)

    def attend(kernel, q_BNLH, k_BNSH, v_BNSH, key_lengths_B):
        arrays = (q_BNLH, k_BNSH, v_BNSH)
        if key_lengths_B is None:
            return jax.vmap(kernel)(*arrays)
        ones_BL = jnp.ones((q_BNLH.shape[0], q_BNLH.shape[2]), jnp.int32)
        real_BS = jnp.arange(filled_keys)[None] < key_lengths_B[:, None]
        return jax.vmap(kernel)(*arrays, SegmentIds(ones_BL, real_BS.astype(jnp.int32)))

    if not mesh.empty:
        of_keys = PartitionSpec(q_spec[0], q_spec[1], None, None)
        of_kernel = NamedSharding(mesh, PartitionSpec(None, q_spec[2] if cuts > 1 else None))
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
    if scale != 1:  # the kernel applies none
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
    """Tokens of whole blocks, where filling up to them costs little; else as many as there are."""
    return _multiple(length, BLOCK) if length >= LONG else length


def block_of(length: int, keys: int) -> int:
    """Rows and columns of the blocks for so many queries and keys."""
    return BLOCK if max(length, keys) >= LONG else SMALL_BLOCK


def gradient_block(keys: int, block: int) -> int | None:
    """Columns of the blocks of the one gradient kernel; None: there are two kernels.

    The one kernel writes its part of the queries' gradient for every column of blocks, to be summed
    afterwards: it saves the scores' second recomputation where these columns are few.
    """
    blocks = keys // block
    fitting = [n for n in range(1, blocks + 1) if blocks % n == 0 and n * block <= MAX_COLUMNS]
    return max(fitting) * block if blocks <= MAX_PARTS * max(fitting) else None


def whole_blocks(length: int, keys: int) -> int:
    """So many keys, filled up to whole blocks, for so many queries."""
    return _multiple(keys, block_of(length, keys))


def _make_kernel(mask: Mask, block: int, heads: int, parts: int, kept: bool) -> Any:
    """The kernel for the heads that one device holds; queries in `parts` along the mesh.

    `kept`: a rematerialisation policy may keep what comes out.
    """
    keys = mask.shape[1]
    sizes = {name: block for name in ('block_q', 'block_kv', 'block_q_dkv')}
    columns = gradient_block(keys, block)
    if columns is None:
        sizes |= {name: block for name in ('block_kv_dkv', 'block_q_dq', 'block_kv_dq')}
    else:
        sizes |= {'block_kv_dkv': columns, 'block_kv_dkv_compute': block}
    return make_splash_mha(
        MultiHeadMask([mask] * heads),
        block_sizes=BlockSizes(**sizes, use_fused_bwd_kernel=columns is not None),
        head_shards=1,
        q_seq_shards=parts,
        residual_checkpoint_name=ATTENDED if kept else None,
        interpret=target_platform() == 'cpu',
    )


def _at_highest_precision(attend: Any) -> Any:
    """`attend` with float32 products, in its gradient too: the kernel's is traced elsewhere."""
    exact = jax.default_matmul_precision('highest')
    run = jax.custom_vjp(exact(attend))
    run.defvjp(exact(lambda *args: jax.vjp(attend, *args)), exact(lambda pull, g: pull(g)))
    return run


def _heads_first(x_BLNH: jax.Array, length: int) -> jax.Array:
    """(B, N, length, H), filled up with zeros."""
    x_BNLH = x_BLNH.transpose(0, 2, 1, 3)
    return jnp.pad(x_BNLH, ((0, 0), (0, 0), (0, length - x_BNLH.shape[2]), (0, 0)))


def _multiple(length: int, of: int) -> int:
    return -(-length // of) * of
