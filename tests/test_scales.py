import itertools
import math

import numpy as np
import pytest

from infinity_jax.errors import UserError
from infinity_jax.scales import (
    BUDGETS,
    RATIOS,
    ScaleSchedule,
    nearest_ratio,
    nearest_size,
    released_name,
)

# Tokens at the four budgets, of each tall ratio; a wide one has those of its inverse.
TOKENS = {
    '1.000': (521, 2521, 6425, 10521),
    '1.250': (614, 2814, 6854, 10774),
    '1.333': (665, 2657, 7085, 10973),
    '1.500': (533, 2759, 6941, 10997),
    '1.750': (472, 2628, 7220, 11252),
    '2.000': (451, 2681, 7219, 11269),
    '2.500': (555, 2555, 6805, 10805),
    '3.000': (509, 2588, 7016, 11123),
}
INVERSES = {
    '0.800': '1.250',
    '0.750': '1.333',
    '0.666': '1.500',
    '0.571': '1.750',
    '0.500': '2.000',
    '0.400': '2.500',
    '0.333': '3.000',
}


def test_there_are_fifteen_ratios():
    assert set(RATIOS) == set(TOKENS) | set(INVERSES) and len(RATIOS) == 15


@pytest.mark.parametrize('ratio', sorted(RATIOS))
def test_schedules_of_every_ratio_and_budget(ratio):
    tokens = TOKENS[INVERSES.get(ratio, ratio)]
    for count, (budget, scales) in zip(tokens, BUDGETS.items(), strict=True):
        schedule = ScaleSchedule.for_image(ratio, budget)
        assert len(schedule) == len(schedule.grids) == scales
        assert schedule.num_tokens == count
        assert schedule.grids[0] == (1, 1) and schedule.grids[1] == (2, 2)
        assert schedule.full_grid == RATIOS[ratio][-1]
        assert schedule.spans[0] == (0, 1) and schedule.spans[-1][1] == count
        for (h, w), (start, end) in zip(schedule.grids, schedule.spans, strict=True):
            assert end - start == h * w
        for small, large in itertools.pairwise(schedule.grids):
            assert small[0] <= large[0] and small[1] <= large[1] and small != large
        assert schedule.scale_of_token.shape == (count,)
        assert (np.diff(schedule.scale_of_token) >= 0).all()


def test_budgets_are_prefixes_and_image_sizes_follow():
    sizes = [ScaleSchedule.for_image(1, budget).image_size() for budget in BUDGETS]
    assert sizes == [(256, 256), (512, 512), (768, 768), (1024, 1024)]
    assert ScaleSchedule.for_image(1.5, '0.06M').image_size() == (336, 224)
    for ratio in RATIOS:
        height, width = ScaleSchedule.for_image(ratio, '1M').image_size()
        assert height * width == pytest.approx(1024**2, rel=0.06)
        assert height / width == pytest.approx(float(ratio), rel=0.02)


@pytest.mark.parametrize(('wide', 'tall'), INVERSES.items())
def test_inverse_ratios_swap_edges_and_truncate_their_names(wide, tall):
    assert RATIOS[wide] == tuple((w, h) for h, w in RATIOS[tall])
    exact = {'1.333': 4 / 3}.get(tall, float(tall))
    assert float(wide) == math.floor(1000 / exact + 1e-9) / 1000


@pytest.mark.parametrize(
    ('ratio', 'name'),
    [(1, '1.000'), (1.1, '1.000'), (1.13, '1.250'), (0.56, '0.571'), (16 / 9, '1.750'),
     (9, '3.000'), (0.01, '0.333'), ('1.5', '1.500'), ('0.666', '0.666'), (2 / 3, '0.666')],
)  # fmt: skip
def test_nearest_ratio(ratio, name):
    assert nearest_ratio(ratio) == name


@pytest.mark.parametrize('ratio', ['square', '', 0, -1.0, math.nan, math.inf, '4:3'])
def test_bad_ratio_is_a_user_error(ratio):
    with pytest.raises(UserError, match='unknown ratio') as error:
        ScaleSchedule.for_image(ratio, '1M')
    assert repr(ratio) in str(error.value) and '1.333' in str(error.value)


def test_bad_budget_is_a_user_error():
    with pytest.raises(UserError, match="budget '2M'; choose one of 0.06M, 0.25M, 0.60M, 1M"):
        ScaleSchedule.for_image(1.0, '2M')


def test_free_schedule():
    schedule = ScaleSchedule.free([[1, 1], [2, 2], [3, 5]])
    assert schedule == ScaleSchedule.free(((1, 1), (2, 2), (3, 5)))
    assert hash(schedule) == hash(ScaleSchedule.free(((1, 1), (2, 2), (3, 5))))
    assert schedule.full_grid == (3, 5)
    assert schedule.spans == ((0, 1), (1, 5), (5, 20))
    assert schedule.image_size(8) == (24, 40)
    assert schedule.code_grids(False) == schedule.grids
    assert schedule.code_grids(True) == ((2, 2), (4, 4), (6, 10))


@pytest.mark.parametrize('grids', [(), ((1, 1), (4, 4), (3, 5)), ((0, 1),), ((1, 1), (2, -2))])
def test_bad_free_schedule_is_a_user_error(grids):
    with pytest.raises(UserError, match='scale schedule'):
        ScaleSchedule.free(grids)


@pytest.mark.parametrize('grids', [(), ((0, 1), (4, 4)), ((1,), (2, 2)), (1, 2, 3)])
def test_free_schedules_list_pairs_of_at_least_one(grids):
    with pytest.raises(UserError, match='scale schedule'):
        ScaleSchedule.free(grids)


EVERY_NAME = list(itertools.product(RATIOS, BUDGETS))


def test_there_are_sixty_released_schedules():
    assert len(EVERY_NAME) == 60


@pytest.mark.parametrize('name', EVERY_NAME, ids='-'.join)
def test_every_released_size_is_its_own_nearest(name):
    schedule = ScaleSchedule.for_image(*name)
    assert nearest_size(*schedule.image_size()) == name
    assert released_name(schedule) == name


@pytest.mark.parametrize(
    ('size', 'name'),
    [
        ((1000, 1000), ('1.000', '1M')),  # between 768² and 1024²: the larger
        ((768, 768), ('1.000', '0.60M')),
        ((769, 768), ('1.000', '1M')),
        ((5000, 5000), ('1.000', '1M')),  # beyond the largest
        ((1, 1), ('1.000', '0.06M')),
        ((1080, 1920), ('0.571', '1M')),
        ((480, 640), ('0.750', '0.60M')),
        ((9000, 10), ('3.000', '0.25M')),
    ],
    ids=str,
)
def test_nearest_size_has_at_least_the_pixels_asked_for(size, name):
    assert nearest_size(*size) == name


@pytest.mark.parametrize('size', [(0, 64), (64, -1)])
def test_a_size_without_pixels_is_a_user_error(size):
    with pytest.raises(UserError, match='wanted 1 or more along each edge'):
        nearest_size(*size)


def test_a_free_schedule_has_no_released_name():
    assert released_name(ScaleSchedule.free(((1, 1), (2, 2)))) is None
    assert released_name(ScaleSchedule.free(RATIOS['1.000'][:7])) is None  # another full grid
