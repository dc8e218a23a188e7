"""Infinity in JAX: bitwise autoregressive text-to-image generation (arXiv 2412.04431).

The names below are imported when they are first used, so that `import infinity_jax.scales` or a
command's `--help` does not wait for jax.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infinity_jax.config import QuantizationConfig
    from infinity_jax.errors import UserError
    from infinity_jax.inference.edit import Edit
    from infinity_jax.inference.pipeline import InfinityPipeline
    from infinity_jax.inference.sampling import SamplingConfig
    from infinity_jax.sharding import MeshConfig

__version__ = '0.2.0'
__all__ = [
    'Edit',
    'InfinityPipeline',
    'MeshConfig',
    'QuantizationConfig',
    'SamplingConfig',
    'UserError',
    '__version__',
]

_MODULES = {
    'Edit': 'inference.edit',
    'InfinityPipeline': 'inference.pipeline',
    'MeshConfig': 'sharding',
    'QuantizationConfig': 'config',
    'SamplingConfig': 'inference.sampling',
    'UserError': 'errors',
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    value = getattr(importlib.import_module(f'{__name__}.{_MODULES[name]}'), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
