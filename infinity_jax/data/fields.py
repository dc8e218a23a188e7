"""The fields of a stored record: JSON objects, and captions in the field that a source names."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from infinity_jax.data.captions import RecordCaptions
from infinity_jax.data.records import BrokenRecord
from infinity_jax.ranges import short
from infinity_jax.runtime.remote import is_remote

# Usual names of the fields of captions and of images, for advice.
CAPTION_FIELDS = (
    'text', 'caption', 'captions', 'txt', 'prompt', 'description', 'sentences', 'long_caption',
    'alt_text',
)  # fmt: skip
IMAGE_FIELDS = (
    'image', 'image_path', 'file_name', 'jpg', 'jpeg', 'png', 'webp', 'img', 'filename', 'path',
    'image_file', 'img_path',
)  # fmt: skip


def parse_object(text: bytes) -> Mapping[str, Any]:
    """Parses a JSON object; raises `BrokenRecord` for anything else."""
    try:
        fields = json.loads(text.decode('utf-8-sig'))  # of bytes, json guesses the encoding
    except ValueError as error:  # so are UnicodeDecodeError and JSONDecodeError
        raise BrokenRecord(f'bad JSON: {error}') from None
    except RecursionError:
        raise BrokenRecord('bad JSON: it is nested too deeply') from None
    if not isinstance(fields, dict):
        raise BrokenRecord(f'bad JSON: {type(fields).__name__} instead of an object')
    return fields


def captions_of(fields: Mapping[str, Any], text_field: str = 'text') -> RecordCaptions | None:
    """Reads captions from the fields of a record.

    `text_field` holds the short caption, or a list of short captions of which training samples one.
    `long_caption` and `long_caption_type` are those of the released training data; a long caption
    without a type counts as written by a user: it is never cut.

    Args:
      fields: name to value.
      text_field: '/' separates the names of nested fields; '': no captions are wanted.

    Returns:
      the captions; None if `text_field` is ''.

    Raises:
      BrokenRecord: the field is missing, or a caption is not text.
    """
    if not text_field:
        return None
    found, long = values_at(fields, text_field), fields.get('long_caption') or ''
    shorts = tuple(value for value in _flat(found or ()) if value is not None)
    for text in (*shorts, long):
        _check_text(text)
    if found is None and not long:
        raise BrokenRecord(f'it has no field {text_field!r}; {advice(fields, "text_field")}')
    machine_written = fields.get('long_caption_type', 'user_prompt') != 'user_prompt'
    return RecordCaptions(shorts, long, machine_written)


def check_no_link(image_field: str, path: str) -> None:
    """Raises `BrokenRecord` for a link, such as https://…, in the place of an image's path."""
    if is_remote(path):
        raise BrokenRecord(
            f'{image_field} is {short(path)}; wanted a path relative to the folder of the images; '
            'download linked images first, for instance with img2dataset'
        )


def values_at(fields: Mapping[str, Any], path: str) -> list[Any] | None:
    """The values of a field, several where lists are nested on the way; None if there is none."""
    found = [fields[path]] if path in fields else list(_walk(fields, path.split('/')))
    return found or None


def advice(names: Iterable[str], setting: str) -> str:
    """The end of a line about a missing field: the value to give the source's `setting`.

    Args:
      names: of the fields that exist.
      setting: 'text_field' or 'image_field'.
    """
    known = [str(name) for name in names]
    usual = CAPTION_FIELDS if setting == 'text_field' else IMAGE_FIELDS
    near = [name for name in usual if name in known and name != 'long_caption']
    if near:
        return f'set {setting} to {near[0]!r}'
    return f'set {setting} to one of its fields: {", ".join(known)[:200] or "it has none"}'


def _walk(value: Any, names: Sequence[str]) -> Iterator[Any]:
    if not names:
        yield value
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _walk(each, names)
    elif isinstance(value, Mapping) and names[0] in value:
        yield from _walk(value[names[0]], names[1:])


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _flat(value)
        else:
            yield value


def _check_text(text: Any) -> None:
    if not isinstance(text, str):
        raise BrokenRecord(f'a caption is not text, but {type(text).__name__}')
    if '\0' in text:
        raise BrokenRecord('a caption holds a zero byte')
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate, from an escape in JSON; tokenizers refuse it
        raise BrokenRecord('a caption holds half of a character') from None
