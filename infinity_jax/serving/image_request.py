"""The fields of a request, checked: OpenAI's own, and those that only models like this have."""

import dataclasses
import difflib
import math
import secrets
from collections.abc import Mapping
from typing import Any

from infinity_jax.errors import UserError
from infinity_jax.inference.given_bits import GivenBits
from infinity_jax.inference.sampling import SamplingConfig
from infinity_jax.scales import ScaleSchedule
from infinity_jax.serving.api_error import ApiError
from infinity_jax.serving.engine import Engine
from infinity_jax.serving.limits import Limits
from infinity_jax.serving.tasks import BatchGroup, ImageTask
from infinity_jax.text.characters import is_blank

# Fields that OpenAI's clients send and that change nothing here.
IGNORED = (
    'quality', 'style', 'user', 'background', 'moderation', 'safety_identifier', 'input_fidelity',
)  # fmt: skip
FIELDS = (
    'model', 'prompt', 'n', 'size', 'aspect_ratio', 'response_format', 'output_format',
    'output_compression', 'stream', 'partial_images', 'seed', 'negative_prompt', 'guidance_scale',
    'temperature',
)  # fmt: skip
FORMATS = ('png', 'jpeg', 'webp')
SEEDS = 2**32
GUIDANCE = (0.0, 30.0)
TEMPERATURE = (0.01, 10.0)
PREVIEWS = 255  # more than any model has scales: all of them


@dataclasses.dataclass(frozen=True)
class ImageRequest:
    """A valid request for images.

    Attributes:
      model: its name on this server.
      prompt, negative: negative is None if there is none, or guidance is off.
      count: number of images.
      seed: of all of them; image i has the key of (seed, i).
      schedule: the token grids.
      sampling: guidance, temperature, and the server's other settings.
      output_format: png, jpeg or webp.
      quality: of jpeg and webp, 0 to 100.
      stream: whether the answer is server-sent events.
      previews: images after fewer scales, at most, per image.
    """

    model: str
    prompt: str
    negative: str | None
    count: int
    seed: int
    schedule: ScaleSchedule
    sampling: SamplingConfig
    output_format: str
    quality: int
    stream: bool
    previews: int

    @property
    def preview_scales(self) -> tuple[int, ...]:
        """The zero-based scales that previews show: evenly spread, the last scale excluded."""
        scales = len(self.schedule) - 1
        count = min(self.previews, scales)
        return tuple((i + 1) * scales // count - 1 for i in range(count))

    def tasks(self, given: GivenBits | None = None, other: str | None = None) -> list[ImageTask]:
        """The images to generate.

        Args:
          given: of an edit, the bits of its source.
          other: of an edit by words, the prompt of the source; it takes the negative one's place.
        """
        negative = self.negative if other is None else other
        group = BatchGroup(self.schedule, self.sampling, negative is not None, given is not None)
        return [
            ImageTask(group, self.prompt, self.seed, i, negative, given=given)
            for i in range(self.count)
        ]

    def settings(self) -> dict[str, Any]:
        """Fields of a request that generates the same images again."""
        return {
            'model': self.model,
            'prompt': self.prompt,
            'negative_prompt': self.negative or '',
            'seed': self.seed,
            'guidance_scale': _number(self.sampling.guidance),
            'temperature': _number(self.sampling.temperature),
        }


def parse_request(
    fields: Mapping[str, Any],
    engines: Mapping[str, Engine],
    sampling: SamplingConfig,
    limits: Limits,
) -> ImageRequest:
    """Checks the fields of a request.

    Args:
      fields: of the JSON object, or of a form, where all values are text.
      engines: the models by name; the first is the default.
      sampling: of requests that do not set it.
      limits: of prompts and images.

    Raises:
      ApiError: a field is unknown or out of range.
    """
    _check_names(fields)
    given = {name: value for name, value in fields.items() if value is not None}
    if given.get('response_format', 'b64_json') != 'b64_json':
        raise ApiError(
            f"response_format is {given['response_format']!r:.80}; wanted 'b64_json': this server "
            'keeps no images',
            param='response_format',
        )
    model = given.get('model', next(iter(engines)))
    if not isinstance(model, str) or model not in engines:
        raise ApiError(
            f'model is {model!r:.80}; this server has {", ".join(engines)}',
            404,
            param='model',
            code='model_not_found',
        )
    chosen: dict[str, Any] = {
        'guidance': _real(given, 'guidance_scale', GUIDANCE),
        'temperature': _real(given, 'temperature', TEMPERATURE),
    }
    sampling = dataclasses.replace(sampling, **{k: v for k, v in chosen.items() if v is not None})
    negative = text_field(given, 'negative_prompt', limits, '')
    guided = _number(sampling.guidance) != 1
    prompt = text_field(given, 'prompt', limits)
    if is_blank(prompt):
        raise ApiError('prompt is empty; write what the image should show', param='prompt')
    output_format = given.get('output_format', 'png')
    if output_format not in FORMATS:
        raise ApiError(
            f'output_format is {output_format!r:.80}; wanted one of {", ".join(FORMATS)}',
            param='output_format',
        )
    return ImageRequest(
        model,
        prompt,
        None if is_blank(negative) or not guided else negative,
        _whole(given, 'n', 1, 1, limits.images),
        _whole(given, 'seed', secrets.randbelow(SEEDS), 0, SEEDS - 1),
        _schedule(given, engines[model]),
        sampling,
        output_format,
        _whole(given, 'output_compression', 100, 0, 100),
        _flag(given, 'stream'),
        _whole(given, 'partial_images', 0, 0, PREVIEWS),
    )


def _check_names(fields: Mapping[str, Any]) -> None:
    for name in fields:
        if name not in FIELDS and name not in IGNORED:
            near = difflib.get_close_matches(name, FIELDS, 1)
            advice = f'did you mean {near[0]}?' if near else f'known are {", ".join(FIELDS)}'
            raise ApiError(f'unknown field {name!r:.80}; {advice}', param=name[:80])


def text_field(
    given: Mapping[str, Any], name: str, limits: Limits, default: str | None = None
) -> str:
    """A field that holds a text which a model can read.

    Raises:
      ApiError: it is something else, too long, or absent without a default.
    """
    value = given.get(name, default)
    if not isinstance(value, str):
        raise ApiError(f'{name} is {value!r:.80}; wanted text', param=name)
    if len(value) > limits.prompt_characters:
        raise ApiError(
            f'{name} has {len(value)} characters; wanted {limits.prompt_characters} at most',
            param=name,
        )
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ApiError(f'{name} holds half of a surrogate pair; send UTF-8', param=name) from None
    if '\0' in value:
        raise ApiError(f'{name} holds a zero byte; remove it', param=name)
    return value


def _whole(given: Mapping[str, Any], name: str, default: int, low: int, high: int) -> int:
    value = given.get(name, default)
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 12:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ApiError(
            f'{name} is {value!r:.80}; wanted a whole number from {low} to {high}', param=name
        )
    return value


def _real(given: Mapping[str, Any], name: str, limits: tuple[float, float]) -> float | None:
    if name not in given:
        return None
    value = given[name]
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            value = math.nan
    low, high = limits
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ApiError(
            f'{name} is {given[name]!r:.80}; wanted a number from {low} to {high}', param=name
        )
    return float(value)


def _flag(given: Mapping[str, Any], name: str) -> bool:
    value = given.get(name, False)
    value = {'true': True, 'false': False}.get(value, value) if isinstance(value, str) else value
    if not isinstance(value, bool):
        raise ApiError(f'{name} is {value!r:.80}; wanted true or false', param=name)
    return value


def _schedule(given: Mapping[str, Any], engine: Engine) -> ScaleSchedule:
    size, ratio = given.get('size', 'auto'), given.get('aspect_ratio')
    try:
        if ratio is not None:
            if size != 'auto':
                raise UserError('size and aspect_ratio are both given; give one of them')
            return engine.choose_schedule(aspect_ratio=str(ratio)[:40])
        if size == 'auto':
            return engine.schedule
        width, _, height = size.partition('x') if isinstance(size, str) else ('', '', '')
        if not all(n.isascii() and n.isdigit() and len(n) < 6 for n in (width, height)):
            raise UserError(
                f"size is {size!r:.80}; wanted WIDTHxHEIGHT such as 1024x1024, or 'auto'"
            )
        return engine.choose_schedule(size=(int(height), int(width)))
    except UserError as error:
        raise ApiError(str(error), param='size' if ratio is None else 'aspect_ratio') from None


def _number(values: float | tuple[float, ...]) -> float | None:
    """A setting as one number; None if it differs by scale."""
    each = (values,) if isinstance(values, int | float) else values
    return each[0] if len(set(each)) == 1 else None
