"""A batch of training data, on the host or on the devices."""

from typing import Generic, NamedTuple, TypeVar

import numpy as np

Array = TypeVar('Array')  # numpy on the host, jax on the devices, or a ShapeDtypeStruct


class Batch(NamedTuple, Generic[Array]):
    """A batch of images of one shape with their captions; None for a field that it lacks.

    A pytree: a jitted function compiles once per set of fields and shapes.

    Attributes:
      pixels_BYX3: uint8 images. They become floats in [-1, 1] in the jitted step, so that a quarter
        of the bytes is copied to the devices.
      features_Bhwd: tokenizer features of the images, computed before; they replace the pixels.
      ids_BT: int32 token ids of the captions.
      text_BTE: text features of the captions, computed before; they replace the ids.
      lengths_B: int32, tokens in each caption, end token included.
      captions: B texts. They stay on the host: a batch on the devices has none.
    """

    pixels_BYX3: Array | None = None
    features_Bhwd: Array | None = None
    ids_BT: Array | None = None
    text_BTE: Array | None = None
    lengths_B: Array | None = None
    captions: list[str] | None = None

    def arrays(self) -> 'Batch[Array]':
        """The batch without its texts, all of whose leaves are arrays."""
        return self._replace(captions=None)


class Example(NamedTuple):
    """An image and its caption, before they are stacked to a batch.

    Attributes:
      caption: '' where the source has none.
      pixels_YX3: uint8.
      features_hwd: tokenizer features, where these are stored instead of the image.
      text_TE: text features of the caption, where these are stored.
      broken: (name, reason) of each record that this one replaces.
    """

    caption: str
    pixels_YX3: np.ndarray | None = None
    features_hwd: np.ndarray | None = None
    text_TE: np.ndarray | None = None
    broken: tuple[tuple[str, str], ...] = ()
