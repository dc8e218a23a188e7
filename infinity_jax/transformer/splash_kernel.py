"""Masks and kernel of splash attention. Apart from `splash`, because Pallas is slow to import."""

from typing import Any

import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import (
    BlockSizes,
    Mask,
    MultiHeadMask,
    make_splash_mha,
    splash_attention_mask,
)

from infinity_jax.sharding import target_platform


def _sees(end: Any, key: Any) -> Any:
    return key < end


class PrefixMask(splash_attention_mask._ComputableMask):
    """The mask under which query i sees the keys [0, ends[i]).

    The kernel passes `q_sequence` to `mask_function`. It usually holds the positions of the
    queries; here it holds their ends. The base class is private, but there is no public one.
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


def make_kernel(
    mask: Mask, heads: int, shards: int, blocks: dict[str, Any], name: str | None
) -> Any:
    """The kernel of one device.

    Args:
      mask: of all heads.
      heads: on this device.
      shards: parts of the queries along the mesh.
      blocks: keywords of `BlockSizes`.
      name: checkpoint name of attended values; None: they have none.
    """
    return make_splash_mha(
        MultiHeadMask([mask] * heads),
        block_sizes=BlockSizes(**blocks),
        head_shards=1,
        q_seq_shards=shards,
        residual_checkpoint_name=name,
        interpret=target_platform() == 'cpu',
    )
