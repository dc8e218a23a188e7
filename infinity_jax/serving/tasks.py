"""What a server generates: one image, and the group of images that may share its batch."""

import dataclasses
from collections.abc import Callable

import numpy as np

from infinity_jax.inference.given_bits import GivenBits
from infinity_jax.inference.sampling import SamplingConfig
from infinity_jax.scales import ScaleSchedule

OnPreview = Callable[[int, np.ndarray], None]


@dataclasses.dataclass(frozen=True)
class BatchGroup:
    """What images of one batch have in common: all that is compiled in, and the numbers.

    Attributes:
      schedule: the token grids.
      sampling: guidance, temperature and the rest.
      negative: whether each has a negative prompt, of its own.
      edits: whether each has given bits, of its own.
    """

    schedule: ScaleSchedule
    sampling: SamplingConfig
    negative: bool = False
    edits: bool = False


def no_preview(scale: int, pixels_YX3: np.ndarray) -> None:
    """Shows a preview to nobody."""


@dataclasses.dataclass(eq=False)
class ImageTask:
    """One image to generate; its random key is that of (seed, index) alone.

    Attributes:
      group: the images that it may share a batch with.
      prompt: not blank.
      seed, index: of its random key.
      negative: not blank if the group has negative prompts, else None; of an edit by words the
        prompt of its source.
      preview_scales: zero-based scales after which it is shown.
      on_preview: takes the scale and the pixels, uint8 (Y, X, 3), on the device's thread.
      given: of an edit, the bits of its source, of one image.
      dropped: nobody waits for it any longer.
    """

    group: BatchGroup
    prompt: str
    seed: int
    index: int
    negative: str | None = None
    preview_scales: frozenset[int] = frozenset()
    on_preview: OnPreview = no_preview
    given: GivenBits | None = None
    dropped: bool = False
