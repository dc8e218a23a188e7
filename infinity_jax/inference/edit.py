"""Editing without training: sources, masks and strengths as the given bits of a generation.

Inpainting keeps what is outside of a mask, outpainting does so on a larger canvas, variation keeps
the first scales, and editing by words keeps each bit that the new prompt does not make unlikely.
All are one compiled program: what they change is traced.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from PIL import Image

from infinity_jax.errors import UserError
from infinity_jax.inference.edit_masks import composite, feathered, kept_codes, kept_scales
from infinity_jax.inference.given_bits import GivenBits
from infinity_jax.inference.source_images import Source, read_image, read_mask, resized
from infinity_jax.scales import Grid, ScaleSchedule, released_name

VARIATION_STRENGTH = 0.5
STRETCH_WARNING = 1.25  # a source is resized to the model's shape; above this a warning says so


@dataclasses.dataclass(frozen=True)
class EditConfig:
    """How much of a source an edit keeps. All fields are traced or of the host: none recompiles."""

    # 0: the source, 1: nothing of it; between, its first scales. None: 1 with a mask or by words,
    # else `VARIATION_STRENGTH`.
    strength: float | None = None
    tolerance: float = 0.3  # by words: nats by which the new prompt may make a kept bit less likely
    composite: bool = True  # pixels outside of the mask are the source's own
    feather: int | None = None  # pixels inside the mask's edge that are mixed; None: edge / 64

    def __post_init__(self):
        if self.strength is not None:
            kept_scales(self.strength, 1)  # checks the range
        if not self.tolerance >= 0:
            raise UserError(f'tolerance is {self.tolerance} nats; wanted 0 or more')
        if self.feather is not None and self.feather < 0:
            raise UserError(f'feather is {self.feather} pixels; wanted 0 or more')


@dataclasses.dataclass(frozen=True)
class EditedImages:
    """Edited images, source by source, each at the size of its source.

    Attributes:
      pixels: uint8 (Y, X, 3) each.
      prompts: the prompt of each image.
      seeds: (seed, index) of each.
    """

    pixels: tuple[np.ndarray, ...]
    prompts: tuple[str, ...]
    seeds: tuple[tuple[int, int], ...]

    @property
    def images(self) -> list[Image.Image]:
        return [Image.fromarray(image) for image in self.pixels]


@dataclasses.dataclass(frozen=True, eq=False)
class EditSource:
    """An image to edit and its mask, as `edit_source` reads them.

    Attributes:
      pixels_YX3: uint8, upright and opaque, at its own size.
      mask_YX: float32, 1 where the model generates; None: no mask was given.
    """

    pixels_YX3: np.ndarray
    mask_YX: np.ndarray | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        height, width = self.pixels_YX3.shape[:2]
        return height, width


def edit_source(image: Source, mask: Source | None = None) -> EditSource:
    """Reads an image and its mask.

    Raises:
      UserError: one of them cannot be read, or they do not fit each other.
    """
    pixels = read_image(image)
    size = pixels.shape[0], pixels.shape[1]
    return EditSource(pixels, None if mask is None else read_mask(mask, size))


def schedule_for(size: tuple[int, int], own: ScaleSchedule) -> ScaleSchedule:
    """The token grids for an image of (height, width): the released ratio nearest to it.

    They are of the same pixel budget as `own`; a model with grids of its own keeps these.
    """
    released = released_name(own)
    if released is None:
        return own
    return ScaleSchedule.for_image(size[0] / size[1], released[1])


class GivenSources:
    """Features and kept codes of the sources of a generation, on the host."""

    def __init__(
        self,
        features: Sequence[np.ndarray],
        sources: Sequence[EditSource],
        grids: Sequence[Grid],
        editing: EditConfig,
        by_words: bool,
    ):
        """Takes encoded sources.

        Args:
          features: (h, w, d) of each, float32.
          sources: the same sources, for their masks.
          grids: of the codes of each scale.
          editing: strength and tolerance.
          by_words: whether the tolerance decides.
        """
        self._features = features
        self._kept = [_kept(source.mask_YX, grids, editing, by_words) for source in sources]
        self._tolerance = np.float32(editing.tolerance if by_words else -np.inf)

    def rows(self, numbers: Sequence[int]) -> GivenBits:
        """The given bits of a batch, by the number of each image's source."""
        kept = zip(*(self._kept[i] for i in numbers), strict=True)
        return GivenBits(
            np.stack([self._features[i] for i in numbers]),
            tuple(np.stack(scale) for scale in kept),
            np.full(len(numbers), self._tolerance),
        )


def _kept(
    mask_YX: np.ndarray | None, grids: Sequence[Grid], editing: EditConfig, by_words: bool
) -> list[np.ndarray]:
    """Per scale (h, w) bool: codes outside of the mask, and all codes of the first scales."""
    strength = editing.strength
    if mask_YX is None:
        outside = [np.zeros(grid, bool) for grid in grids]
    else:
        outside = kept_codes(mask_YX, grids)
    if strength is None:
        strength = VARIATION_STRENGTH if mask_YX is None and not by_words else 1.0
    first = kept_scales(strength, len(grids))
    return [kept | (scale < first) for scale, kept in enumerate(outside)]


def finished(source: EditSource, generated_YX3: np.ndarray, editing: EditConfig) -> np.ndarray:
    """A generated image at the size of its source, with the source's pixels outside of the mask."""
    pixels = resized(generated_YX3, source.size)
    if source.mask_YX is None or not editing.composite:
        return pixels
    return composite(source.pixels_YX3, pixels, feathered(source.mask_YX, editing.feather))
