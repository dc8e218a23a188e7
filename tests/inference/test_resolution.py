"""Which token grids serve a wish, and which wishes are refused."""

import dataclasses

import pytest

from infinity_jax.config import PRESETS, TokenizerConfig, TransformerConfig, pixels_per_token
from infinity_jax.errors import UserError
from infinity_jax.inference.resolution import choose_schedule
from infinity_jax.scales import ScaleSchedule

RELEASED = (PRESETS['2b'], TokenizerConfig())
DEMO_GRIDS = ScaleSchedule.free(((1, 1), (2, 2), (4, 4), (8, 8)))
DEMO = (
    TransformerConfig(depth=5, width=192, num_heads=3, max_scales=4),
    TokenizerConfig(base_channels=64, channel_multipliers=(1, 2), unshuffle=4),
)


def released(*name):
    return ScaleSchedule.for_image(*name)


def test_pixels_per_token():
    eight = TokenizerConfig(bits=14, channel_multipliers=(1, 2, 4, 4))
    assert pixels_per_token(*RELEASED) == 16
    assert pixels_per_token(PRESETS['8b'], eight) == 16
    assert pixels_per_token(*DEMO) == 8


def test_without_a_wish_the_models_own_grids_or_the_released_ones_of_1024():
    assert choose_schedule(*RELEASED) == released('1.000', '1M')
    assert choose_schedule(*DEMO, DEMO_GRIDS) == DEMO_GRIDS
    assert choose_schedule(*DEMO, DEMO_GRIDS, size=(64, 64)) == DEMO_GRIDS


def test_a_wish_is_fulfilled():
    assert choose_schedule(*RELEASED, ratio=0.5) == released('0.500', '1M')
    assert choose_schedule(*RELEASED, budget='0.06M') == released('1.000', '0.06M')
    assert choose_schedule(*RELEASED, ratio='1.5', budget='0.25M') == released('1.500', '0.25M')
    assert choose_schedule(*RELEASED, size=(720, 1280)) == released('0.571', '1M')


def test_what_is_left_out_is_that_of_the_models_own_schedule():
    own = released('1.500', '0.06M')
    assert choose_schedule(*RELEASED, own) == own
    assert choose_schedule(*RELEASED, own, ratio=0.5) == released('0.500', '0.06M')
    assert choose_schedule(*RELEASED, own, budget='1M') == released('1.500', '1M')


def test_two_wishes_at_once_are_a_user_error():
    with pytest.raises(UserError, match='either ratio and budget or height and width'):
        choose_schedule(*RELEASED, ratio=1, size=(64, 64))


@pytest.mark.parametrize('wish', [{'ratio': 1.0}, {'budget': '0.06M'}, {'size': (256, 256)}])
def test_a_model_on_other_tokens_refuses_released_sizes(wish):
    with pytest.raises(UserError, match='tokens of 16 pixels, .* have 8; .* draws 64 x 64 on its'):
        choose_schedule(*DEMO, DEMO_GRIDS, **wish)


def test_a_model_with_too_few_levels_refuses_longer_schedules():
    few = dataclasses.replace(PRESETS['2b'], max_scales=7)
    assert choose_schedule(few, TokenizerConfig(), budget='0.06M') == released(1, '0.06M')
    with pytest.raises(UserError, match='10 scales, transformer.max_scales is 7'):
        choose_schedule(few, TokenizerConfig(), budget='0.25M')
