"""float32 for a model in bfloat16 on an NVIDIA card that multiplies none, as all before Ampere.

There XLA converts the operands of most products to float32, and refuses those of attention, for
which JAX names the arithmetic.
"""

import dataclasses
import functools
import sys

from infinity_jax.config import TransformerConfig
from infinity_jax.errors import UserError

BFLOAT16 = 'bfloat16'


def for_card(config: TransformerConfig, lack: str) -> TransformerConfig:
    """The configuration with products in float32, and a line on stderr, on a card without bfloat16.

    Args:
      config: of a model whose dtype the user did not choose.
      lack: why the card multiplies no bfloat16, see `sharding.lack_of_bfloat16`; '': it does.
    """
    if config.dtype != BFLOAT16 or not lack:
        return config
    _say(f"dtype: float32 instead of the model's {BFLOAT16}, since {lack}")
    return dataclasses.replace(config, dtype='float32')


def check_dtype(dtype: str, lack: str, field: str, remedy: str) -> None:
    """Refuses a dtype that the user chose, on a card without it.

    Args:
      dtype: the chosen one.
      lack: see `for_card`.
      field, remedy: for the message: the dtype's name, and what to do.

    Raises:
      UserError: the dtype is bfloat16, and the card multiplies none.
    """
    if dtype == BFLOAT16 and lack:
        raise UserError(f'{field} is {dtype!r}, but {lack}: {remedy}')


@functools.cache  # once per process
def _say(line: str) -> None:
    print(line, file=sys.stderr)
