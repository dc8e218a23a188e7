"""The choice of an implementation of attention, and the way out of a fault of cuDNN's.

cuDNN attention compiles its kernels with libraries of its own when a program is compiled. It can
fail where every other program of the same GPU runs, for instance with versions of CUDA and cuDNN
that do not fit (jax issues 23227, 23833 and 32430). XLA's attention computes the same.
"""

import functools
import sys
from typing import Any

import jax
import jax.numpy as jnp

from infinity_jax.errors import UserError, in_one_line
from infinity_jax.sharding import target_capability, target_kind, target_platform
from infinity_jax.transformer.splash import SMALL_BLOCK

IMPLEMENTATIONS = ('auto', 'xla', 'cudnn', 'splash')
CUDNN_MAX_HEAD_DIM = 128  # Hopper would allow 256
CUDNN_CAPABILITY = (8, 0)  # Ampere
# Of XLA's and JAX's errors about cuDNN attention, in lower case.
FAULTS = ('cudnn', 'cuda_dnn', 'no valid engine configs', 'execution plan')
SHOWN = 200  # characters of a fault


def choose(implementation: str, q_BLNH: jax.Array | jax.ShapeDtypeStruct) -> str:
    """The implementation that serves these queries: 'xla', 'cudnn' or 'splash'.

    'auto' depends on the platform that the program is compiled for, and on the compute capability
    of an NVIDIA card. Few queries, as in the first scales, are left to XLA, because kernels would
    mostly compute padding. cuDNN needs 16 bits.

    Raises:
      UserError: the named implementation does not run on this platform, card, dtype or head dim.
    """
    platform, head_dim = target_platform(), q_BLNH.shape[-1]
    few = q_BLNH.shape[1] < SMALL_BLOCK
    fits_cudnn = _is_half(q_BLNH.dtype) and _fits_heads(head_dim)
    if implementation == 'auto':
        if platform == 'gpu':
            implementation = 'cudnn' if fits_cudnn and not few and _says_recent() else 'xla'
        else:
            implementation = 'splash' if platform == 'tpu' and not few else 'xla'
    if implementation not in IMPLEMENTATIONS:
        raise UserError(f'attention is {implementation!r}; wanted {", ".join(IMPLEMENTATIONS)}')
    if implementation == 'cudnn':
        _check_cudnn(platform, q_BLNH.dtype, head_dim)
    if implementation == 'splash' and platform == 'gpu':
        raise UserError("attention is 'splash', which is for TPU; on a GPU set 'auto' or 'cudnn'")
    return 'xla' if implementation == 'splash' and few else implementation


def _check_cudnn(platform: str, dtype: Any, head_dim: int) -> None:
    """Raises `UserError`, which names the one cause, where cuDNN attention does not run."""
    automatic = "set attention to 'auto' or 'xla'"
    if platform != 'gpu':
        cause = f'which is for NVIDIA GPUs, and the platform is {platform!r}: {automatic}'
    elif not _is_half(dtype):
        cause = (
            f'which wants bfloat16 or float16, and the products in blocks are in {dtype}: set '
            "their dtype to bfloat16, or attention to 'auto'"
        )
    elif not _fits_heads(head_dim):
        cause = (
            f'which wants heads of a multiple of 8 up to {CUDNN_MAX_HEAD_DIM}, and the model has '
            f'heads of {head_dim}: {automatic}'
        )
    elif not _is_recent():
        cause = f'but {_too_old()}: {automatic}'
    else:
        return
    raise UserError(f"attention is 'cudnn', {cause}")


def _is_half(dtype: Any) -> bool:
    return dtype in (jnp.bfloat16, jnp.float16)


def _fits_heads(head_dim: int) -> bool:
    return head_dim % 8 == 0 and head_dim <= CUDNN_MAX_HEAD_DIM


def after_fault(implementation: str, error: RuntimeError) -> str:
    """The implementation to go on with after an error of compiling or starting a program.

    Args:
      implementation: of the program; only 'auto' falls back, to 'xla', with a line on stderr.
      error: raised again unless it is a fault of cuDNN.

    Raises:
      UserError: cuDNN attention was asked for by name.
    """
    text = str(error)
    full = text.startswith('RESOURCE_EXHAUSTED')  # of memory, which XLA's attention needs too
    if full or implementation == 'xla' or not any(fault in text.lower() for fault in FAULTS):
        raise error
    fault = in_one_line(error, SHOWN)
    if implementation != 'auto':
        raise UserError(
            f'attention is {implementation!r}, and cuDNN failed ({fault}); set attention to '
            "'auto' or 'xla'"
        ) from error
    _say(f"attention: XLA's from here on, since cuDNN failed ({fault})")
    return 'xla'


def _is_recent() -> bool:
    """Whether cuDNN attention supports the card; one of unknown capability may be tried."""
    capability = target_capability()
    return capability is None or capability >= CUDNN_CAPABILITY


def _says_recent() -> bool:
    """`_is_recent`, with a line on stderr where it is not."""
    if _is_recent():
        return True
    _say(f"attention: XLA's, since {_too_old()}")
    return False


def _too_old() -> str:
    pair = (target_capability() or (), CUDNN_CAPABILITY)
    have, wanted = ('.'.join(map(str, each)) for each in pair)
    return (
        f'{target_kind()} has compute capability {have} and cuDNN attention needs {wanted} '
        '(Ampere) or newer'
    )


@functools.cache  # once per process
def _say(line: str) -> None:
    print(line, file=sys.stderr)
