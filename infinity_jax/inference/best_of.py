"""Best of N: the images of each prompt that a score of the user's choice likes best."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from infinity_jax.errors import UserError

# Images and their prompts -> one number per image, the higher the better.
Score = Callable[[list[Image.Image], list[str]], Sequence[float]]


class BestImages:
    """Scores batches as they are generated, and keeps the best images of each prompt alone."""

    def __init__(self, prompts: Sequence[str], num: int, keep: int | None, score: Score):
        """Takes the call of a pipeline.

        Args:
          prompts: one or several.
          num: images per prompt.
          keep: of these; None: all.
          score: called once per batch.

        Raises:
          UserError: `keep` is not between 1 and `num`.
        """
        keep = num if keep is None else keep
        if not 1 <= keep <= num:
            raise UserError(f'keep is {keep}; wanted 1 to the {num} images of num')
        self._prompts, self._num, self._keep, self._score = prompts, num, keep, score
        # Of each prompt: (score, number of the image, pixels), the best first.
        self._best: list[list[tuple[float, int, np.ndarray]]] = [[] for _ in prompts]
        self._count = 0

    def add(self, pixels_BYX3: np.ndarray) -> None:
        """Scores the next images, in the order of prompts.

        Raises:
          UserError: the score does not return a number for each image.
        """
        numbers = range(self._count, self._count + len(pixels_BYX3))
        self._count += len(pixels_BYX3)
        prompts = [self._prompts[number // self._num] for number in numbers]
        images = [Image.fromarray(image) for image in pixels_BYX3]
        scores = np.asarray(self._score(images, prompts))
        if scores.shape != (len(images),) or scores.dtype.kind not in 'biuf':
            raise UserError(
                f'score returned {scores.dtype} of shape {scores.shape} for {len(images)} images; '
                'wanted one number for each'
            )
        for number, value, image in zip(numbers, scores.tolist(), pixels_BYX3, strict=True):
            if math.isnan(value):
                raise UserError(
                    f'score returned NaN for an image of {prompts[number - numbers.start]!r}; '
                    'wanted a number'
                )
            best = self._best[number // self._num]
            best.append((float(value), number, image.copy()))
            best.sort(key=lambda each: (-each[0], each[1]))
            del best[self._keep :]

    def result(self) -> tuple[np.ndarray, list[int], tuple[float, ...]]:
        """Pixels uint8 (prompts · keep, Y, X, 3), numbers and scores; by prompt, best first."""
        scores, numbers, images = zip(*(each for best in self._best for each in best), strict=True)
        return np.stack(images), list(numbers), scores
