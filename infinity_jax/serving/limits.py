"""How much a server takes on: sizes of requests, images, and waiting."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of a server; a request above one is refused with a message that names it.

    Attributes:
      prompt_characters: of a prompt, and of a negative prompt.
      images: per request.
      waiting: images that wait for the device; more are refused with status 429.
      requests: that are answered at the same time; more are refused with status 503.
      json_bytes: of a request without files.
      upload_bytes: of a request with files.
      pixels: of an uploaded image, known before it is decoded.
      edge: of an uploaded image, in pixels.
      held_pixels: of all uploaded images and masks that are being edited; further ones are refused
        with status 429.
      timeout_s: from a request's arrival to its last image.
      batch_wait_s: for which an idle device waits for requests to join the first one.
    """

    prompt_characters: int = 4000
    images: int = 10
    waiting: int = 64
    requests: int = 512
    json_bytes: int = 2**20
    upload_bytes: int = 20 * 2**20
    pixels: int = 25_000_000
    edge: int = 16_384
    held_pixels: int = 200_000_000
    timeout_s: float = 300.0
    batch_wait_s: float = 0.004
