"""Named policies of rematerialisation: what the backward pass recomputes instead of keeping."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from infinity_jax.errors import UserError
from infinity_jax.transformer.block import UPDATE
from infinity_jax.transformer.layers import STATISTICS
from infinity_jax.transformer.rope import ROTATED
from infinity_jax.transformer.splash import ATTENDED

# jax's name of cuDNN attention, whose gradient reads its result and the sums of its softmax: with
# the result alone the kernel would run twice.
CUDNN_ATTENTION = 'dot_product_attention_fwd_wrapper'


def _cudnn(primitive: Any, *_: Any, **__: Any) -> bool:
    return str(primitive) == CUDNN_ATTENTION


def _also(policy: Callable[..., Any]) -> Callable[..., Any]:
    """A policy that keeps what cuDNN attention returns, too."""
    return jax.checkpoint_policies.save_from_both_policies(policy, _cudnn)


_attention = _also(jax.checkpoint_policies.save_only_these_names(ATTENDED))
_queries = _also(
    jax.checkpoint_policies.save_only_these_names(ATTENDED, ROTATED, UPDATE, STATISTICS)
)
_dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable

# Name -> policy. Every block keeps its input. In addition it keeps:
#   'none': all that its gradient reads;
#   'dots': the outputs of its weight matrices and of self-attention;
#   'queries': the outputs of self-attention and FFN, rotated queries and keys, norm statistics;
#   'attention': the output of self-attention, and by cuDNN that of cross-attention;
#   'full': nothing.
POLICIES: dict[str, Callable[..., Any] | None] = {
    'none': None,
    'dots': jax.checkpoint_policies.save_from_both_policies(_dots, _attention),
    'queries': _queries,
    'attention': _attention,
    'full': jax.checkpoint_policies.nothing_saveable,
}


def check_remat(name: str) -> None:
    """Raises `UserError` unless `name` is in `POLICIES`."""
    if name not in POLICIES:
        raise UserError(f'remat is {name!r}; wanted one of {", ".join(POLICIES)}')


def remat(body: Callable[..., Any], name: str, unrolled: bool = False) -> Callable[..., Any]:
    """Wraps `body(module, …)` so that its gradient recomputes what the policy does not keep.

    Args:
      body: a layer.
      name: in `POLICIES`.
      unrolled: whether `body` runs outside a scan.
    """
    if name == 'none':
        return body
    # Inside a scan the compiler cannot merge the two computations, so prevent_cse is not needed.
    return nn.remat(body, policy=POLICIES[name], prevent_cse=unrolled)
