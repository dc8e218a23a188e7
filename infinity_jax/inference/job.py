"""What one call asks of a pipeline: images that share all that is compiled in."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from infinity_jax.errors import UserError
from infinity_jax.inference.sampling import SamplingConfig
from infinity_jax.scales import ScaleSchedule

if TYPE_CHECKING:
    from infinity_jax.inference.edit import GivenSources


@dataclasses.dataclass(frozen=True, eq=False)
class GenerationJob:
    """Images to generate with the same schedule and sampling settings.

    Attributes:
      prompts: one or more, none empty.
      seeds: (seed, index) of every image, the `num` images of a prompt together: they alone decide
        its random key, so that images of several requests can share a batch.
      schedule: the token grids.
      num: images per prompt.
      sampling: guidance, temperature, top-k, top-p.
      negative: replaces the learned unconditional text.
      sources: of edits, one per prompt; None: nothing is given.
      source_prompts: one per prompt, for editing by words; they replace the unconditional text.
      flip_rate: probability with which every sampled bit of any scale but the last is flipped, as
        in training with self-correction: the flips are part of the image, and later scales see
        them.

    Raises:
      UserError: the flip rate is no probability.
    """

    prompts: Sequence[str]
    seeds: Sequence[tuple[int, int]]
    schedule: ScaleSchedule
    num: int = 1
    sampling: SamplingConfig = SamplingConfig()
    negative: str | None = None
    sources: 'GivenSources | None' = None
    source_prompts: Sequence[str] | None = None
    flip_rate: float = 0.0

    def __post_init__(self):
        check_flip_rate(self.flip_rate)


def check_flip_rate(rate: float) -> None:
    """Checks a rate of flips; a UserError unless it is a probability."""
    if not 0 <= rate <= 1:
        raise UserError(f'the rate of flips is {rate:g}; wanted a probability, 0 to 1')
