"""The result of a call of the pipeline."""

import dataclasses

import numpy as np
from PIL import Image


@dataclasses.dataclass(frozen=True)
class GeneratedImages:
    """Generated images, prompt by prompt.

    Attributes:
      pixels: uint8 (images, Y, X, 3).
      prompts: the prompt of each image.
      seeds: (seed, index) of each: with the same settings they generate the same image again.
      batch_seconds: duration of each program call, text included, and compiling where needed.
      scores: of each image, if the call had a score; then the best image of a prompt comes first.
    """

    pixels: np.ndarray
    prompts: tuple[str, ...]
    seeds: tuple[tuple[int, int], ...]
    batch_seconds: tuple[float, ...] = ()
    scores: tuple[float, ...] = ()

    @property
    def images(self) -> list[Image.Image]:
        return [Image.fromarray(image) for image in self.pixels]

    def grid(self, columns: int = 8, cell: int = 128) -> Image.Image:
        """All images on one sheet, with their scores and prompts below.

        Args:
          columns: images per row, at most.
          cell: edge of an image on the sheet, in pixels.
        """
        from infinity_jax.images import contact_sheet

        captions = list(self.prompts)
        if self.scores:
            pairs = zip(self.scores, self.prompts, strict=True)
            captions = [f'{score:.3f} {prompt}' for score, prompt in pairs]
        return contact_sheet(self.pixels, captions, columns=columns, cell=cell)
