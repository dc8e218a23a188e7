"""The checks of a tokenizer run's configuration, and the released schedule of every image shape."""

import dataclasses

import pytest

from infinity_jax.config import TokenizerConfig
from infinity_jax.data.config import DataConfig
from infinity_jax.errors import UserError
from infinity_jax.scales import BUDGETS, RATIOS, ScaleSchedule
from infinity_jax.training.optimizer import OptimizerConfig
from infinity_jax.training.tokenizer.config import (
    AdversarialConfig,
    TokenizerLosses,
    TokenizerRunConfig,
    check,
    released_schedule,
)
from infinity_jax.training.tokenizer.noise import QuantizerTraining

CONFIG = TokenizerRunConfig(
    task='tokenizer',
    run_dir='nowhere',
    steps=1,
    batch_size=8,
    optimizer=OptimizerConfig(learning_rate=1e-2),
    data=DataConfig(image_size=16),
    grids=((1, 1), (2, 2), (4, 4)),
    tokenizer=TokenizerConfig(bits=8, channel_multipliers=(1,), unshuffle=4),
)


def test_disagreeing_sizes_are_refused():
    check(CONFIG)
    with pytest.raises(UserError, match='data.image_size is 32'):
        check(dataclasses.replace(CONFIG, data=DataConfig(image_size=32)))
    with pytest.raises(UserError, match="precision is 'low'"):
        check(dataclasses.replace(CONFIG, precision='low'))
    with pytest.raises(UserError, match='too small for a discriminator of 3 layers, which wants'):
        check(dataclasses.replace(CONFIG, adversarial=AdversarialConfig(weight=0.3)))


def test_truncated_images_keep_a_scale():
    dropped = dataclasses.replace(
        CONFIG,
        losses=TokenizerLosses(truncated=1.0),
        quantizer=QuantizerTraining(scale_drop=0.5),
    )
    with pytest.raises(UserError, match='set quantizer.keep_first'):
        check(dropped)
    kept = QuantizerTraining(scale_drop=0.5, keep_first=True)
    check(dataclasses.replace(dropped, quantizer=kept))


def test_an_image_too_small_for_lpips():
    small = dataclasses.replace(
        CONFIG,
        data=DataConfig(image_size=8),
        grids=((1, 1), (2, 2)),
        losses=TokenizerLosses(perceptual=1.0),
        vgg_weights='vgg16.pth',
        lpips_heads='vgg.pth',
    )
    with pytest.raises(UserError, match='wants 16 or more'):
        check(small)


def test_an_image_determines_its_released_schedule():
    for ratio in RATIOS:
        for budget in BUDGETS:
            schedule = ScaleSchedule.for_image(ratio, budget)
            assert released_schedule(schedule.image_size()).grids == schedule.grids
    with pytest.raises(UserError, match='no released schedule is for images of'):
        released_schedule((100, 100))


@pytest.mark.parametrize(('multipliers', 'last'), [((1, 2, 4, 4, 4), 16), ((1, 2, 4, 4), 32)])
def test_without_grids_images_have_their_released_ones(multipliers, last):
    config = dataclasses.replace(
        CONFIG, grids=(), tokenizer=TokenizerConfig(channel_multipliers=multipliers)
    )
    assert config.code_grids((256, 256))[-1] == (last, last)
    assert len(config.code_grids((1024, 1024))) == 13
    assert len(config.code_grids(ScaleSchedule.for_image('1.500', '1M').image_size())) == 13


def test_a_stride_without_released_schedules():
    with pytest.raises(UserError, match='this tokenizer has stride 4; set config.grids'):
        check(dataclasses.replace(CONFIG, grids=(), data=DataConfig(image_size=256)))


@pytest.mark.parametrize(
    'fields',
    [
        {'layers': 0},
        {'channels': 6},
        {'weight': -1.0},
        {'lecam': float('nan')},
        {'adaptive_limit': float('inf')},
        {'lecam_decay': 1.0},
    ],
)
def test_impossible_adversaries(fields):
    with pytest.raises(UserError, match=f'adversarial.{next(iter(fields))} .*wanted'):
        AdversarialConfig(**fields)


@pytest.mark.parametrize(
    'name', ['l1', 'l2', 'commitment', 'entropy', 'perceptual', 'truncated', 'inverse_temperature']
)
@pytest.mark.parametrize('value', [-0.5, float('nan'), float('inf')])
def test_impossible_weights_of_losses(name, value):
    with pytest.raises(UserError, match=f'losses.{name} is {value}; wanted 0 or more, and finite'):
        TokenizerLosses(**{name: value})


def test_unknown_remat():
    with pytest.raises(UserError, match="remat is 'dots'; wanted 'none' or 'full'"):
        check(dataclasses.replace(CONFIG, remat='dots'))
