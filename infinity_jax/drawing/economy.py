"""What may be saved at some cost to the pictures. All of it is off unless asked for."""

import dataclasses

from infinity_jax.config import UserError


@dataclasses.dataclass(frozen=True)
class Economy:
    """Lossy savings of memory and time; what each costs stands in docs/memory.md."""

    weights: str = 'full'  # 'int8': the blocks' kernels, a scale for each output channel
    cache: str = 'full'  # 'int8': keys and values of earlier scales, a scale for each token's head
    unguided_scales: int = 0  # so many last scales run without the unconditional half

    def __post_init__(self):
        for name in ('weights', 'cache'):
            if getattr(self, name) not in ('full', 'int8'):
                raise UserError(f"{name} is {getattr(self, name)!r}; wanted 'full' or 'int8'")
        if self.unguided_scales < 0:
            raise UserError(f'unguided_scales is {self.unguided_scales}; wanted 0 or more')
