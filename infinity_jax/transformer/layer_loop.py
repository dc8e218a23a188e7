"""Whether a training program loops over the layers, or lists them one after the other.

A loop over stacked layers compiles in a time that does not grow with the depth. It copies what the
gradient reads into arrays of all layers and back, after it has filled them with zeros. On a CPU
that takes a fifth of the time of a small model's step. A listed program keeps each value where it
was computed. Accelerators keep the loop: there the copies are cheap, and compiling is dear.
"""

from infinity_jax.errors import UserError
from infinity_jax.sharding import target_platform

LAYERS = ('auto', 'scanned', 'unrolled')
MAX_UNROLLED = 16  # layers that 'auto' lists on a CPU; more take minutes to compile


def check_layers(name: str) -> None:
    """Raises `UserError` unless `name` is in `LAYERS`."""
    if name not in LAYERS:
        raise UserError(f'layers is {name!r}; wanted one of {", ".join(LAYERS)}')


def unrolled(name: str, depth: int) -> bool:
    """Whether a training program lists its layers.

    Args:
      name: 'scanned', 'unrolled', or 'auto': on a CPU, up to `MAX_UNROLLED` layers.
      depth: number of layers.
    """
    if name == 'auto':
        return target_platform() == 'cpu' and depth <= MAX_UNROLLED
    return name == 'unrolled'
