"""What the backward pass recomputes instead of keeping, by name."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from infinity_jax.errors import UserError
from infinity_jax.transformer.block import UPDATE
from infinity_jax.transformer.layers import STATISTICS
from infinity_jax.transformer.splash import ATTENDED
from infinity_jax.transformer.tpu import ROTATED

_names = jax.checkpoint_policies.save_only_these_names(ATTENDED)
_queries = jax.checkpoint_policies.save_only_these_names(ATTENDED, ROTATED, UPDATE, STATISTICS)
_dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable

# Beside each block's input, which is always kept, a block keeps: 'none', all that its gradient
# reads; 'dots', the outputs of its weight matrices and of self-attention; 'queries', those of
# self-attention and FFN, queries and keys as they are compared, and the norms' statistics;
# 'attention', the output of self-attention alone; 'full', nothing.
POLICIES: dict[str, Callable[..., Any] | None] = {
    'none': None,
    'dots': jax.checkpoint_policies.save_from_both_policies(_dots, _names),
    'queries': _queries,
    'attention': _names,
    'full': jax.checkpoint_policies.nothing_saveable,
}


def check_remat(name: str) -> None:
    """Raises `UserError` unless `name` is in `POLICIES`."""
    if name not in POLICIES:
        raise UserError(f'remat is {name!r}; wanted one of {", ".join(POLICIES)}')


def remat(body: Callable[..., Any], name: str, unrolled: bool = False) -> Callable[..., Any]:
    """`body(module, …)`, whose gradient recomputes what the policy does not keep."""
    if name == 'none':
        return body
    # Inside a scan nothing can merge the two computations, which is what prevent_cse prevents.
    return nn.remat(body, policy=POLICIES[name], prevent_cse=unrolled)
