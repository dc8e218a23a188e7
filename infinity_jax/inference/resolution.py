"""The token grids that a model generates: its own, or the released ones of an image shape."""

from infinity_jax.config import ModelConfigs, TransformerConfig, pixels_per_token, required
from infinity_jax.errors import UserError
from infinity_jax.renamed import notice
from infinity_jax.scales import (
    BUDGETS,
    STRIDE,
    ScaleSchedule,
    height_over_width_of,
    nearest_size,
    released_name,
)
from infinity_jax.transformer.model import check_schedule

DEFAULT_RATIO = '1.000'
DEFAULT_BUDGET = '1M'


def choose_schedule(
    configs: ModelConfigs,
    *,
    aspect_ratio: str | None = None,
    height_over_width: float | str | None = None,
    budget: str | None = None,
    size: tuple[int, int] | None = None,
    ratio: float | str | None = None,
) -> ScaleSchedule:
    """The token grids of a requested image shape, or the model's own grids without a request.

    Args:
      configs: transformer, tokenizer and, if the model folder names one, its schedule.
      aspect_ratio: 'WIDTH:HEIGHT' such as '16:9'; the nearest released one is taken. With a budget
        alone that of the model's own schedule, or 1:1.
      height_over_width: the same as one number, height / width: 0.5625 for 16:9.
      budget: of pixels; with a ratio alone that of the model's own schedule, or 1M.
      size: (height, width) in pixels instead of both; the nearest released one is taken.
      ratio: the name of `height_over_width` in version 0.1, read until version 0.3.

    Raises:
      UserError: a shape that the model cannot generate, or two shapes at once.
    """
    own = configs.schedule
    transformer = required(configs.transformer, 'transformer')
    stride = pixels_per_token(transformer, required(configs.tokenizer, 'tokenizer'))
    if ratio is not None:
        notice('keyword ratio', 'height_over_width')
    ratios = {
        'aspect_ratio': None if aspect_ratio is None else height_over_width_of(aspect_ratio),
        'height_over_width': height_over_width,
        'ratio': ratio,
    }
    given = {name: value for name, value in ratios.items() if value is not None}
    if len(given) > 1:
        raise UserError(f'{" and ".join(given)} are both given; give one of them')
    ratio = next(iter(given.values()), None)
    named = ratio is not None or budget is not None
    if named and size is not None:
        raise UserError('give either ratio and budget or height and width, not both')
    if own is not None and not named and size in (None, own.image_size(stride)):
        return own
    if size is not None:
        ratio, budget = nearest_size(*size)
    own_name = released_name(own) if own is not None else None
    own_ratio, own_budget = own_name or (DEFAULT_RATIO, DEFAULT_BUDGET)
    schedule = ScaleSchedule.for_image(
        own_ratio if ratio is None else ratio, own_budget if budget is None else budget
    )
    problem = _misfit(transformer, stride, schedule)
    if problem and own is not None:
        height, width = own.image_size(stride)
        problem = (
            f'this model generates {height} x {width} pixels alone; leave out aspect ratio, budget '
            f'and size ({problem})'
        )
    if problem:
        raise UserError(problem)
    return schedule


def budget_line(configs: ModelConfigs, schedule: ScaleSchedule) -> str:
    """A sentence about a pixel budget that a model was not trained at; '' if it was.

    A folder without a schedule is of a released model, whose last stage is 1M.

    Args:
      configs: of the model folder, with its own schedule.
      schedule: of the image.
    """
    own = released_name(configs.schedule) if configs.schedule else (DEFAULT_RATIO, DEFAULT_BUDGET)
    asked = released_name(schedule)
    if own is None or asked is None or own[1] == asked[1]:
        return ''
    trained, budgets = own[1], list(BUDGETS)
    source = 'the model was trained at'
    if configs.schedule is None:
        source = 'released models were last trained at (this folder names no other)'
    side = 'below' if budgets.index(asked[1]) < budgets.index(trained) else 'above'
    return (
        f'the budget {asked[1]} is {side} {trained}, which {source}: expect worse images; leave '
        f'out the size to generate at {trained}'
    )


def _misfit(transformer: TransformerConfig, stride: int, schedule: ScaleSchedule) -> str:
    """The reason why the model cannot use a released schedule; '' if it can."""
    if stride != STRIDE:
        return (
            f'the released image sizes are for tokens of {STRIDE} pixels, the tokens of this '
            f'model have {stride}'
        )
    try:
        check_schedule(transformer, schedule)
    except UserError as error:
        return str(error)
    return ''
