"""Which token grids a model draws on: its own, or the released ones of a wanted image shape."""

from infinity_jax.config import TokenizerConfig, TransformerConfig, pixels_per_token
from infinity_jax.errors import UserError
from infinity_jax.scales import STRIDE, ScaleSchedule, nearest_size, released_name
from infinity_jax.transformer.model import check_schedule

DEFAULT_RATIO = '1.000'
DEFAULT_BUDGET = '1M'


def choose_schedule(
    transformer: TransformerConfig,
    tokenizer: TokenizerConfig,
    own: ScaleSchedule | None = None,
    *,
    ratio: float | str | None = None,
    budget: str | None = None,
    size: tuple[int, int] | None = None,
) -> ScaleSchedule:
    """The token grids for a wish, or the model's own grids where nothing is wished.

    Args:
      transformer, tokenizer: the model.
      own: the schedule that its folder names, if it names one.
      ratio: height/width; the nearest released one is taken. With a budget alone that
        of the model's own schedule, or 1.
      budget: of pixels; with a ratio alone that of the model's own schedule, or 1M.
      size: (height, width) in pixels instead of both; the nearest released one is taken.

    Raises:
      UserError: a wish that the model cannot fulfil, or one that says two things.
    """
    stride = pixels_per_token(transformer, tokenizer)
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
        problem += f'; leave out the size: this model draws {height} x {width} on its own grids'
    if problem:
        raise UserError(problem)
    return schedule


def _misfit(transformer: TransformerConfig, stride: int, schedule: ScaleSchedule) -> str:
    """Why the model cannot draw on a released schedule; '' if it can."""
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
