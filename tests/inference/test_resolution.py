"""The token grids that serve a request, and the requests that are refused."""

import dataclasses

import pytest

from infinity_jax.config import PRESETS, ModelConfigs, TokenizerConfig, TransformerConfig
from infinity_jax.errors import UserError
from infinity_jax.inference.resolution import budget_line, choose_schedule
from infinity_jax.scales import ScaleSchedule

RELEASED = ModelConfigs(PRESETS['2b'], TokenizerConfig())
DEMO = ModelConfigs(
    TransformerConfig(depth=5, width=192, num_heads=3, max_scales=4),
    TokenizerConfig(base_channels=64, channel_multipliers=(1, 2), unshuffle=4),
    schedule=ScaleSchedule.free(((1, 1), (2, 2), (4, 4), (8, 8))),
)


def released(*name):
    return ScaleSchedule.for_image(*name)


def test_without_a_request_the_models_own_grids_or_the_released_ones_of_1024():
    assert choose_schedule(RELEASED) == released('1.000', '1M')
    assert choose_schedule(DEMO) == DEMO.schedule
    assert choose_schedule(DEMO, size=(64, 64)) == DEMO.schedule


def test_a_request_is_served():
    assert choose_schedule(RELEASED, height_over_width=0.5) == released('0.500', '1M')
    assert choose_schedule(RELEASED, budget='0.06M') == released('1.000', '0.06M')
    tall = choose_schedule(RELEASED, height_over_width='1.5', budget='0.25M')
    assert tall == released('1.500', '0.25M')
    assert choose_schedule(RELEASED, size=(720, 1280)) == released('0.571', '1M')


@pytest.mark.parametrize(
    ('aspect', 'ratio'), [('16:9', '0.571'), ('1:1', '1.000'), ('2:3', '1.500')]
)
def test_an_aspect_ratio_is_width_to_height(aspect, ratio):
    assert choose_schedule(RELEASED, aspect_ratio=aspect) == released(ratio, '1M')


@pytest.mark.parametrize('aspect', ['16/9', '1.5', ':2', '0:1', '-1:2', '1:2:3'])
def test_a_text_that_is_no_aspect_ratio_is_a_user_error(aspect):
    with pytest.raises(UserError, match='is not an aspect ratio; wanted WIDTH:HEIGHT'):
        choose_schedule(RELEASED, aspect_ratio=aspect)


def test_the_old_keyword_is_read_and_one_line_names_the_new_one(capsys):
    for _ in range(2):
        assert choose_schedule(RELEASED, ratio=0.5) == released('0.500', '1M')
    line = capsys.readouterr().err
    assert line.count('\n') == 1 and 'ratio is now height_over_width' in line


def test_a_field_without_a_request_is_that_of_the_models_own_schedule():
    own = dataclasses.replace(RELEASED, schedule=released('1.500', '0.06M'))
    assert choose_schedule(own) == own.schedule
    assert choose_schedule(own, height_over_width=0.5) == released('0.500', '0.06M')
    assert choose_schedule(own, budget='1M') == released('1.500', '1M')


def test_two_requests_at_once_are_a_user_error():
    with pytest.raises(UserError, match='either ratio and budget or height and width'):
        choose_schedule(RELEASED, height_over_width=1, size=(64, 64))
    with pytest.raises(UserError, match='aspect_ratio and height_over_width are both given'):
        choose_schedule(RELEASED, aspect_ratio='1:1', height_over_width=1)


@pytest.mark.parametrize(
    'wish', [{'height_over_width': 1.0}, {'budget': '0.06M'}, {'size': (256, 256)}]
)
def test_a_model_on_other_tokens_refuses_released_sizes(wish):
    text = 'generates 64 x 64 pixels alone; .* tokens of 16 pixels, .* have 8'
    with pytest.raises(UserError, match=text):
        choose_schedule(DEMO, **wish)


def test_a_model_with_too_few_scales_refuses_longer_schedules():
    few = ModelConfigs(dataclasses.replace(PRESETS['2b'], max_scales=7), TokenizerConfig())
    assert choose_schedule(few, budget='0.06M') == released(1, '0.06M')
    with pytest.raises(UserError, match='10 scales, transformer.max_scales is 7'):
        choose_schedule(few, budget='0.25M')


@pytest.mark.parametrize('budget', ['0.06M', '0.25M'])
def test_a_budget_below_the_trained_one_is_said(budget):
    line = budget_line(RELEASED, released('1.000', budget))
    assert line.startswith(f'the budget {budget} is below 1M, which released models were last')
    own = dataclasses.replace(RELEASED, schedule=released('1.500', '0.25M'))
    line = budget_line(own, released('1.000', '0.06M'))
    assert line.startswith('the budget 0.06M is below 0.25M, which the model was trained at: ')
    assert ' above 0.25M, ' in budget_line(own, released('1.000', '1M'))


def test_the_trained_budget_and_own_grids_need_no_line():
    assert budget_line(RELEASED, released('0.500', '1M')) == ''
    own = dataclasses.replace(RELEASED, schedule=released('1.500', '0.25M'))
    assert budget_line(own, released('1.000', '0.25M')) == ''
    assert budget_line(DEMO, DEMO.schedule) == ''
