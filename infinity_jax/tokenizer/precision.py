"""Convolutions in float32 whose products may be rounded, by the names that the field gives them.

`tf32` rounds operands to 10 bits of mantissa (NVIDIA cards from Ampere on), `bfloat16` to 7, and
`bfloat16_3x` adds three products of bfloat16 parts. `tf32_mixed` is `bfloat16_3x` on the smallest
maps of the decoder, those of the code grid, whose errors all later layers pass on, and `tf32`
elsewhere. Sums are float32. On a CPU the roundings are
emulated, so that their effect on images can be measured anywhere: docs/notebook/precision.md.
"""

from typing import Any

import jax
import jax.numpy as jnp

from infinity_jax.config import AUTO, CONVOLUTION_PRECISIONS
from infinity_jax.errors import UserError
from infinity_jax.runtime.accelerators import lacks_bfloat16
from infinity_jax.sharding import target_kind, target_platform

FLOAT32, TF32_MIXED, TF32, BFLOAT16_3X, BFLOAT16 = CONVOLUTION_PRECISIONS
# The cheapest whose images stay within one grey level of float32, see docs/notebook/precision.md.
DEFAULTS = {'cpu': FLOAT32, 'gpu': TF32_MIXED, 'tpu': BFLOAT16_3X}
# What the hardware does by itself for a `jax.lax.Precision`.
BUILT_IN = {
    ('gpu', TF32): jax.lax.Precision.DEFAULT,
    ('tpu', BFLOAT16_3X): jax.lax.Precision.HIGH,
    ('tpu', BFLOAT16): jax.lax.Precision.DEFAULT,
}
MANTISSA_BITS = {TF32: 10, BFLOAT16: 7, BFLOAT16_3X: 7}


def in_use(precision: str, platform: str) -> str:
    """The precision that a name stands for on a platform: itself, or the default for 'auto'."""
    return DEFAULTS[platform] if precision == AUTO else precision


def on_code_grid(precision: Any) -> Any:
    """The precision, see `convolution`, of the convolutions of maps as large as the code grid."""
    if in_use(precision, target_platform()) != TF32_MIXED:
        return precision
    return FLOAT32 if lacks_bfloat16(target_kind()) else BFLOAT16_3X


def convolution(lhs: jax.Array, rhs: jax.Array, *args: Any, precision: Any = None, **options: Any):
    """`jax.lax.conv_general_dilated`, to which a precision may be given by name as well.

    Args:
      lhs, rhs: input and kernel. Names are for float32 operands; others keep their own dtype.
      precision: 'auto', one of `CONVOLUTION_PRECISIONS`, or a `jax.lax.Precision`; 'tf32_mixed' is
        TF32 here, see `on_code_grid`.
      args, options: of `jax.lax.conv_general_dilated`.

    Raises:
      UserError: 'tf32' on a TPU, which has none.
    """

    if precision not in (AUTO, *CONVOLUTION_PRECISIONS):
        options['precision'] = precision
        return jax.lax.conv_general_dilated(lhs, rhs, *args, **options)
    if lhs.dtype != jnp.float32:
        return jax.lax.conv_general_dilated(lhs, rhs, *args, **options)
    options['preferred_element_type'] = jnp.float32

    def convolve(x: jax.Array, kernel: jax.Array, passed: Any) -> jax.Array:
        return jax.lax.conv_general_dilated(x, kernel, *args, **{**options, 'precision': passed})

    platform = target_platform()
    name = in_use(precision, platform)
    name = TF32 if name == TF32_MIXED else name
    if name == TF32 and platform == 'tpu':
        raise UserError(f'decoder precision is {TF32}, which a TPU lacks; choose {BFLOAT16_3X}')
    if name == FLOAT32 or (platform, name) in BUILT_IN:
        built_in = BUILT_IN.get((platform, name), jax.lax.Precision.HIGHEST)
        return convolve(lhs, rhs, built_in)
    if platform == 'cpu':
        # The products of rounded operands are exact in float32 here.
        high = lambda x: _rounded(x, name)
        exact = jax.lax.Precision.HIGHEST
    else:
        high = lambda x: x.astype(jnp.bfloat16)
        exact = None
    x, kernel = high(lhs), high(rhs)
    result = convolve(x, kernel, exact)
    if name == BFLOAT16_3X:
        rest = lambda whole, part: high(whole - part.astype(jnp.float32))
        result += convolve(rest(lhs, x), kernel, exact) + convolve(x, rest(rhs, kernel), exact)
    return result


def _rounded(x: jax.Array, name: str) -> jax.Array:
    """float32 values rounded to the mantissa of TF32 or bfloat16, half to even."""
    # A cast to bfloat16 and back could be removed by the compiler as excess precision.
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=MANTISSA_BITS[name])
