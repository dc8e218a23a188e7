"""Requests with images: their form, limits that hold before anything is decoded, and edits."""

import contextlib
import dataclasses
import io
from collections.abc import Iterator
from typing import Any

from python_multipart.exceptions import FormParserError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from infinity_jax.data.decode import upright_size
from infinity_jax.data.records import BrokenRecord
from infinity_jax.errors import UserError
from infinity_jax.inference.edit import Edit, ReadEdit
from infinity_jax.serving.api_error import ApiError
from infinity_jax.serving.image_request import text_field
from infinity_jax.serving.limits import Limits
from infinity_jax.text.characters import is_blank

FILES = ('image', 'mask')
MOST_FIELDS = 40
EDIT_FIELDS = ('source_prompt', 'strength')


@dataclasses.dataclass(frozen=True)
class Form:
    """A form's fields and files.

    Attributes:
      fields: text by name.
      files: encoded images by name.
    """

    fields: dict[str, Any]
    files: dict[str, bytes]


async def read_form(request: Request) -> Form:
    """The form of a request; its files are images within the limits.

    Raises:
      ApiError: it is no form, or has other files than one `image` and one `mask`.
    """
    kind = request.headers.get('content-type', '').partition(';')[0].strip()
    if kind != 'multipart/form-data':
        raise ApiError(f'Content-Type is {kind!r:.80}; wanted multipart/form-data', 415)
    try:
        form = await request.form(max_files=len(FILES), max_fields=MOST_FIELDS)
    except HTTPException as error:  # as Starlette reports a form that it cannot read
        raise ApiError(f'the form cannot be read: {error.detail}') from None
    except FormParserError as error:  # older versions of Starlette let it pass
        raise ApiError(f'the form cannot be read: {error}') from None
    try:
        fields: dict[str, Any] = {}
        files: dict[str, bytes] = {}
        for name, value in form.multi_items():
            name = {'image[]': 'image'}.get(name, name)  # as OpenAI's client names one of a list
            if name in fields or name in files:
                raise ApiError(f'{name:.80} is given twice; send one', param=name[:80])
            if isinstance(value, UploadFile) != (name in FILES):
                wanted = 'an image file' if name in FILES else 'text'
                raise ApiError(f'{name:.80} is of the wrong kind; wanted {wanted}', param=name[:80])
            if isinstance(value, UploadFile):
                files[name] = await value.read()
            else:
                fields[name] = value
        return Form(fields, files)
    finally:
        await form.close()


class PixelRoom:
    """Bounds the pixels of uploaded images in memory: a file of 100 KB may hold 25 million.

    It belongs to one event loop.
    """

    def __init__(self, most: int):
        """most: pixels at the same time."""
        self._most, self._held = most, 0

    @contextlib.contextmanager
    def hold(self, pixels: int) -> Iterator[None]:
        """Takes room for so many pixels while the context lasts.

        Raises:
          ApiError: there is none at present.
        """
        if self._held + pixels > self._most:
            raise ApiError(
                f'images with {self._held} pixels are being edited, and this one has {pixels}; '
                f'wanted {self._most} at most at the same time: try again later',
                429,
                code='queue_full',
                retry_after=2,
            )
        self._held += pixels
        try:
            yield
        finally:
            self._held -= pixels


def checked_pixels(form: Form, limits: Limits) -> int:
    """The pixels of a form's image and mask, of which only the headers are read.

    Raises:
      ApiError: no image, one that cannot be read, or one that is too large.
    """
    pixels = sum(
        _checked_size(name, form.files[name], limits) for name in FILES if name in form.files
    )
    if 'image' not in form.files:
        raise ApiError('no image is given; send one in the form field image', param='image')
    return pixels


def read_edit(form: Form, prompt: str, limits: Limits) -> ReadEdit:
    """Decodes a form's image and mask; it takes time, so a thread should run it.

    Args:
      form: with the fields of `EDIT_FIELDS` still in it, and files that `checked_pixels` passed.
      prompt: of the request, already checked.
      limits: of texts.

    Raises:
      ApiError: an image that cannot be read, or a field out of range.
    """
    strength = form.fields.get('strength')
    source_prompt = text_field(form.fields, 'source_prompt', limits, '')
    try:
        number = None if strength in (None, '') else float(strength)
    except ValueError:
        raise ApiError(
            f'strength is {strength!r:.80}; wanted a number from 0 to 1', param='strength'
        ) from None
    try:
        return Edit(
            form.files['image'],
            prompt,
            form.files.get('mask'),
            None if is_blank(source_prompt) else source_prompt,
            number,
        ).read()
    except UserError as error:
        raise ApiError(str(error)) from None


def _checked_size(name: str, file: bytes, limits: Limits) -> int:
    """The pixels of one file, by its header: nothing is decoded before its size is known."""
    try:
        height, width = upright_size(io.BytesIO(file))
    except BrokenRecord as error:
        raise ApiError(f'{name}: {error}', param=name) from None
    if height * width > limits.pixels or max(height, width) > limits.edge:
        raise ApiError(
            f'{name} has {width} x {height} pixels; wanted {limits.pixels} at most, and '
            f'{limits.edge} along an edge: make it smaller',
            413,
            param=name,
            code='image_too_large',
        )
    return height * width
