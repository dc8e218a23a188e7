"""Editing without training: what an edit asks for, and the bits of its source that it keeps.

Inpainting keeps what is outside of a mask, outpainting does so on a larger canvas, variation keeps
the first scales, and editing by words keeps each bit that the new prompt does not make unlikely.
One compiled program does all of it: what an edit changes is traced.
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
TOLERANCE = 0.4  # nats; docs/editing.md has the measurement


@dataclasses.dataclass(frozen=True, eq=False)
class Edit:
    """An image to edit, and how. No field recompiles anything.

    Attributes:
      image: a path, an encoded image, a PIL image, or pixels, uint8 (Y, X, 3).
      prompt: what the result should show.
      mask: white, or transparent, where the model generates; the rest is kept.
      source_prompt: what the image shows, for editing by words: a bit is kept unless the prompt
        makes it less likely than the source prompt does.
      strength: 0 is the source, 1 keeps nothing of it, between them its first scales are kept.
        None: 1 with a mask or a source prompt, else `VARIATION_STRENGTH`.
      tolerance: nats by which a kept bit may become less likely, with a source prompt.
      composite: with a mask, pixels outside of it are the source's own. Else all pixels are the
        model's: the composite goes through the tokenizer once more.
      feather: pixels inside the mask's edge that are mixed; None: 1/64 of the shorter edge.

    Raises:
      UserError: a number out of its range.
    """

    image: Source
    prompt: str
    mask: Source | None = None
    source_prompt: str | None = None
    strength: float | None = None
    tolerance: float = TOLERANCE
    composite: bool = True
    feather: int | None = None

    def __post_init__(self):
        if self.strength is not None:
            kept_scales(self.strength, 1)  # checks the range
        if not self.tolerance >= 0:
            raise UserError(f'tolerance is {self.tolerance} nats; wanted 0 or more')
        if self.feather is not None and self.feather < 0:
            raise UserError(f'feather is {self.feather} pixels; wanted 0 or more')

    def read(self) -> 'ReadEdit':
        """Reads image and mask.

        Raises:
          UserError: one of them cannot be read, or they do not fit each other.
        """
        pixels = read_image(self.image)
        size = pixels.shape[0], pixels.shape[1]
        return ReadEdit(self, pixels, None if self.mask is None else read_mask(self.mask, size))


@dataclasses.dataclass(frozen=True, eq=False)
class ReadEdit:
    """An edit whose image and mask are read.

    Attributes:
      edit: what was asked for.
      pixels_YX3: the source, uint8, upright and opaque, at its own size.
      mask_YX: float32, 1 where the model generates; None: there is no mask.
    """

    edit: Edit
    pixels_YX3: np.ndarray
    mask_YX: np.ndarray | None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the source in pixels."""
        height, width = self.pixels_YX3.shape[:2]
        return height, width

    def kept(self, grids: Sequence[Grid]) -> list[np.ndarray]:
        """Per scale (h, w) bool: codes outside of the mask, and all codes of the first scales."""
        strength = self.edit.strength
        if strength is None:
            only_varied = self.mask_YX is None and self.edit.source_prompt is None
            strength = VARIATION_STRENGTH if only_varied else 1.0
        first = kept_scales(strength, len(grids))
        if self.mask_YX is None:
            return [np.full(grid, scale < first) for scale, grid in enumerate(grids)]
        outside = kept_codes(self.mask_YX, grids)
        return [kept | (scale < first) for scale, kept in enumerate(outside)]

    def is_reencoded(self, grids: Sequence[Grid]) -> bool:
        """Whether its composite is encoded, quantized and decoded once more.

        Only then do codes that were generated change the model's pixels where the source is kept.
        """
        if self.mask_YX is None or self.edit.composite:
            return False
        kept = np.concatenate([scale.ravel() for scale in self.kept(grids)])
        return bool(kept.any()) and not kept.all()

    def composited(self, generated_YX3: np.ndarray) -> np.ndarray:
        """The generated image at the size of the source, with its pixels outside of the mask."""
        pixels = resized(generated_YX3, self.size)
        if self.mask_YX is None:
            return pixels
        return composite(self.pixels_YX3, pixels, feathered(self.mask_YX, self.edit.feather))

    def finish(self, generated_YX3: np.ndarray) -> np.ndarray:
        """The result: `composited`, or all pixels as generated if the edit wants these."""
        if self.edit.composite:
            return self.composited(generated_YX3)
        return resized(generated_YX3, self.size)


@dataclasses.dataclass(frozen=True)
class EditedImages:
    """Edited images, edit by edit, each at the size of its source.

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


class GivenSources:
    """Features and kept codes of the sources of a job, on the host."""

    def __init__(
        self, features: Sequence[np.ndarray], edits: Sequence[ReadEdit], grids: Sequence[Grid]
    ):
        """Takes encoded sources.

        Args:
          features: (h, w, d) of each, float32.
          edits: their edits.
          grids: of the codes of each scale.
        """
        self._features = features
        self._kept = [each.kept(grids) for each in edits]
        self._tolerances = [
            -np.inf if each.edit.source_prompt is None else each.edit.tolerance for each in edits
        ]

    def rows(self, numbers: Sequence[int]) -> GivenBits:
        """The given bits of a batch, by the number of each image's source; numpy arrays."""
        kept = zip(*(self._kept[i] for i in numbers), strict=True)
        return GivenBits(
            np.stack([self._features[i] for i in numbers]),
            tuple(np.stack(scale) for scale in kept),
            np.array([self._tolerances[i] for i in numbers], np.float32),
        )


def schedule_for(size: tuple[int, int], own: ScaleSchedule) -> ScaleSchedule:
    """The token grids for an image of (height, width): those of the nearest released ratio.

    They are of the same pixel budget as `own`; a model with grids of its own keeps these.
    """
    released = released_name(own)
    if released is None:
        return own
    return ScaleSchedule.for_image(size[0] / size[1], released[1])
