"""Claims of the paper, tried on the embedded emoji: small models, several seeds, one command each.

    infinity-jax experiment run configs/experiments.py:self_correction --seeds 0,1,2
    infinity-jax experiment report runs/experiments/self_correction

The first command trains and judges every point of an experiment, one after the other; started
again, it goes on where it ended. Estimated minutes of one core of a laptop, for three seeds:

    self_correction 230    budget 130       requantizing 125   model_scaling 90
    vocabulary 105         classifier 40    sampling 20        sampling_by_scale 15
    repair 15, of the models of self_correction; repair_long 8, of those of budget;
    repair_requantizing 2, of those of requantizing
    num_scales 50          condition_drop 40; condition_drop_sampling 15, of its models

and 7 for each of the tokenizers, which `vocabulary` and `classifier` train first. One point by
itself:

    python -m infinity_jax.main --config=configs/experiments.py:self_correction/4_scales_0.1

Every point is the main job (configs/t2i.py) with the fields of `SMALL`, and with those that its
experiment changes; those of `sampling` and `sampling_by_scale` evaluate the shipped model, those of
`repair` the models of `self_correction`, of `repair_long` the longest of `budget`, of
`repair_requantizing` those of `requantizing`, and of `condition_drop_sampling` those of
`condition_drop`.
"""

import importlib.util
import pathlib
from collections.abc import Sequence

from ml_collections import ConfigDict

# Half of the main job's transformer, and large emoji alone.
SMALL = {
    'steps': 2400,  # 38,400 images
    'transformer.width': 96,
    'transformer.depth': 3,
    'transformer.num_heads': 3,  # head dim 96 / 3 = 32
    'data.placed_rate': 0.0,
    'log_every': 50,
    'eval_every': 600,
    'sample_every': 2400,
    'first_sample': 0,
}
SHORT = {'steps': 600, 'eval_every': 200, 'sample_every': 600}  # 9,600 images
MIDDLE = {'steps': 1200, 'eval_every': 400, 'sample_every': 1200}  # 19,200 images
SCALES = {
    '2': ((1, 1), (8, 8)),
    '3': ((1, 1), (4, 4), (8, 8)),
    '4': ((1, 1), (2, 2), (4, 4), (8, 8)),  # of the shipped tokenizer
    '6': ((1, 1), (2, 2), (3, 3), (4, 4), (6, 6), (8, 8)),
}
GUIDANCES = (1, 2, 3, 4, 6)
TEMPERATURES = (0.5, 0.7, 1.0)
IMAGES = 50  # of trained and as many of held-out pairs, per point and seed
JUDGED = ('emoji_trained', 'emoji_held_out', 'background')  # figures of an evaluation
REPAIRED = ('flipped_trained', 'flipped_held_out', 'flipped_background', 'change')
STRENGTHS = (0.0, 0.1, 0.2, 0.3)
RATES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3)  # of flips in generation
DROPS = (0.0, 0.1, 0.3)  # shares of captions
BUDGETS = (300, 1200, 4800)  # steps; self_correction has 2400
# Width, depth: 0.13, 0.52, 1.1, 2.4 and 6.3 million parameters in blocks, a factor of 47.
SIZES = {'0.1m': (64, 2), '0.5m': (96, 3), '1m': (128, 4), '2.4m': (192, 4), '6m': (256, 6)}
# Name -> d, of tokenizers like the demo's with half of its channels.
TOKENIZERS = {f'd{bits}': bits for bits in (8, 10, 12, 16, 32, 64)}
SMALL_TOKENIZER = {
    'steps': 1500,  # 24,000 images
    'tokenizer.base_channels': 32,
    'data.subset': 'starter',  # as the transformers
    'data.placed_rate': 0.0,
    'log_every': 50,
    'eval_every': 500,
    'sample_every': 1500,
}
VOCABULARIES = ('d8', 'd16', 'd32', 'd64')
INDEXED = ('d8', 'd10', 'd12')  # 2^d logits fit


def _self_correction() -> dict:
    """Strengths of the flips, with few and with many scales."""
    return {
        f'{number}_scales_{strength:g}': {
            'x': strength,
            'series': f'{number} scales',
            'fields': {
                'grids': grids,
                'transformer.max_scales': len(grids),
                'self_correction.max_strength': strength,
            },
        }
        for number, grids in ((number, SCALES[number]) for number in ('4', '6'))
        for strength in STRENGTHS
    }


def _num_scales() -> dict:
    """The number of scales, against the time of an image."""
    return {
        f'{number}_scales': {
            'x': int(number),
            'series': 'models',
            'fields': {**MIDDLE, 'grids': grids, 'transformer.max_scales': len(grids)},
        }
        for number, grids in SCALES.items()
    }


def _condition_drop() -> dict:
    """The share of captions that are dropped in training."""
    return {
        f'{rate:g}_dropped': {
            'x': rate,
            'series': 'guidance 3',
            'fields': {**MIDDLE, 'condition_drop': rate},
        }
        for rate in DROPS
    }


def _condition_drop_sampling() -> dict:
    """The models of `condition_drop` with and without guidance."""
    return {
        f'{rate:g}_dropped_guidance_{guidance}': {
            **_evaluation(rate, f'guidance {guidance}', guidance, '0.5'),
            'model': f'condition_drop/{rate:g}_dropped',
        }
        for guidance in (1, 2, 3)
        for rate in DROPS
    }


def _length(steps: int) -> dict:
    """The fields of a training of `steps` steps."""
    return {'steps': steps, 'eval_every': steps // 3, 'sample_every': steps}


def _budget() -> dict:
    """The length of training, with and without self-correction."""
    return {
        f'{steps}_steps_{strength:g}': {
            'x': steps,
            'series': f'strength {strength:g}',
            'fields': {**_length(steps), 'self_correction.max_strength': strength},
        }
        for steps in BUDGETS
        for strength in (0.0, 0.1)
    }


def _requantizing() -> dict:
    """Flips whose targets follow, flips alone, and no flips: the rows of the paper's table.

    At the length from which on flips are worth their price, see `budget`.
    """
    rows = {'none': (0.0, True), 'flips': (0.1, False), 'self_correction': (0.1, True)}
    return {
        name: {
            'x': x,
            'series': 'strength 0.1',
            'fields': {
                **_length(BUDGETS[-1]),
                'self_correction.max_strength': strength,
                'self_correction.requantize': requantize,
            },
        }
        for x, (name, (strength, requantize)) in enumerate(rows.items())
    }


def _size(name: str) -> dict:
    """The fields of a size of the transformer."""
    width, depth = SIZES[name]
    return {
        'transformer.width': width,
        'transformer.depth': depth,
        'transformer.num_heads': width // 32,
    }


def _model_scaling() -> dict:
    """The size of the transformer."""
    points = {}
    for name, (width, depth) in SIZES.items():
        hidden = max(round(width * 4 / 256), 1) * 256  # of the feed-forward, see `hidden_width`
        parameters = depth * width * (8 * width + 2 * hidden) / 1e6
        points[name] = {'x': parameters, 'series': 'models', 'fields': {**SHORT, **_size(name)}}
    return points


def _vocabulary() -> dict:
    """The bits of the tokenizer, for a small and for a large transformer."""
    return {
        f'{tokenizer}_{size}': {
            'x': TOKENIZERS[tokenizer],
            'series': f'{parameters} M parameters in blocks',
            'tokenizer': tokenizer,
            'fields': {**MIDDLE, **_size(size)},
        }
        for size, parameters in (('0.1m', 0.13), ('1m', 1.1))
        for tokenizer in VOCABULARIES
    }


def _classifier() -> dict:
    """Two logits per bit, or one softmax over all codes."""
    return {
        f'{tokenizer}_{classifier}': {
            'x': TOKENIZERS[tokenizer],
            'series': classifier,
            'tokenizer': tokenizer,
            'fields': {**SHORT, 'transformer.classifier': classifier},
        }
        for classifier in ('bits', 'index')
        for tokenizer in INDEXED
    }


def _evaluation(x: float, series: str, guidance: object, temperature: str, *more: str) -> dict:
    """A point that judges the shipped model with flags of `infinity-jax evaluate demo`."""
    flags = ('demo', '--count', str(IMAGES), '--cfg', str(guidance), '--tau', temperature, *more)
    return {'x': x, 'series': series, 'evaluate': flags}


def _sampling() -> dict:
    """Guidance by temperature; and the more probable value of every bit at any temperature."""
    points = {
        f'{guidance}_{temperature}': _evaluation(
            guidance, f'temperature {temperature}', guidance, str(temperature)
        )
        for temperature in TEMPERATURES
        for guidance in GUIDANCES
    }
    for guidance in GUIDANCES:
        greedy = ('--top-k', '1')
        points[f'{guidance}_greedy'] = _evaluation(guidance, 'greedy', guidance, '1', *greedy)
    return points


def _sampling_by_scale() -> dict:
    """Guidance or temperature that rises or falls from scale to scale, with the same mean."""
    points = {}
    for mean in (2, 3, 4):
        # Of the four scales; rising from 1, no guidance, to 2 · mean - 1.
        rising = [round(1 + 2 * (mean - 1) * scale / 3, 2) for scale in range(4)]
        rows = {'constant': [mean], 'rising': rising, 'falling': rising[::-1]}
        for name, numbers in rows.items():
            guidance = ','.join(f'{number:g}' for number in numbers)
            points[f'guidance_{mean}_{name}'] = _evaluation(
                mean, f'guidance {name}', guidance, '0.5'
            )
    for name, numbers in {'rising': '0.2,0.4,0.6,0.8', 'falling': '0.8,0.6,0.4,0.2'}.items():
        points[f'temperature_{name}'] = _evaluation(3, f'temperature {name}', '3', numbers)
    for top_p in (0.8, 0.9, 1):
        points[f'top_p_{top_p:g}'] = _evaluation(
            3, f'top-p {top_p:g}', '3', '0.5', '--top-p', str(top_p)
        )
    return points


def _flipped(model: str, series: str, rate: float) -> dict:
    """Bits flipped while the model of another experiment's point generates."""
    flags = ('repair', '--no-references', '--rates', f'{rate:g}', '--count', '100')
    return {'x': 100 * rate, 'series': series, 'model': model, 'evaluate': flags}


def _repair(strengths: Sequence[float], models: str) -> dict:
    """By strength of the flips in training; `models` plus a strength is the training of one."""
    return {
        f'{strength:g}_flipped_{rate:g}': _flipped(
            f'{models}{strength:g}', f'flips up to {strength:g} in training', rate
        )
        for rate in RATES
        for strength in strengths
    }


def _repair_requantizing() -> dict:
    """Every model of `requantizing`, with the largest share of flipped bits."""
    return {
        name: _flipped(f'requantizing/{name}', name.replace('_', '-'), RATES[-1])
        for name in _requantizing()
    }


# Name -> title and axis of the plot, and the points: position, line of the plot, changed fields.
EXPERIMENTS = {
    'self_correction': {
        'title': 'Self-correction by strength',
        'axis': 'largest probability of a flip',
        'points': _self_correction(),
    },
    'repair': {
        'title': 'Bits flipped while models generate, by strength in training',
        'axis': 'bits flipped in all scales but the last (%)',
        'figures': REPAIRED,
        'points': _repair(STRENGTHS, 'self_correction/4_scales_'),
    },
    'repair_long': {
        'title': f'Bits flipped while models of {BUDGETS[-1]} steps generate',
        'axis': 'bits flipped in all scales but the last (%)',
        'figures': REPAIRED,
        'points': _repair((0.0, 0.1), f'budget/{BUDGETS[-1]}_steps_'),
    },
    'repair_requantizing': {
        'title': f'Bits flipped while models of {BUDGETS[-1]} steps generate: flips alone',
        'axis': 'bits flipped in all scales but the last (%)',
        'figures': REPAIRED,
        'points': _repair_requantizing(),
    },
    'budget': {
        'title': 'Self-correction by length of training',
        'axis': 'steps of 16 images',
        'log_axis': True,
        'points': _budget(),
    },
    'requantizing': {
        'title': 'No flips, flips alone, self-correction',
        'axis': '0: no flips, 1: flips alone, 2: self-correction',
        'points': _requantizing(),
    },
    'model_scaling': {
        'title': 'Quality by size of the transformer',
        'axis': 'million parameters in blocks',
        'log_axis': True,
        'points': _model_scaling(),
        'scaling': True,
    },
    'vocabulary': {
        'title': 'Bits of the tokenizer by size of the transformer',
        'axis': 'd, bits per code',
        'log_axis': True,
        'figures': (
            'psnr',
            'reconstructed',
            'emoji_trained',
            'emoji_held_out',
            'accuracy',
            'loss',
        ),
        'points': _vocabulary(),
    },
    'classifier': {
        'title': 'Bit classifier against index classifier',
        'axis': 'd, bits per code',
        'figures': (
            'head_parameters',
            'head_memory',
            'loss',
            'accuracy',
            'emoji_trained',
            'emoji_held_out',
        ),
        'points': _classifier(),
    },
    'num_scales': {
        'title': 'Number of scales',
        'axis': 'scales',
        'figures': ('emoji_trained', 'emoji_held_out', 'seconds_per_image', 'compute'),
        'points': _num_scales(),
    },
    'condition_drop': {
        'title': 'Captions dropped in training',
        'axis': 'share of captions',
        'points': _condition_drop(),
    },
    'condition_drop_sampling': {
        'title': 'Guidance by captions dropped in training',
        'axis': 'share of captions dropped',
        'figures': JUDGED,
        'points': _condition_drop_sampling(),
    },
    'sampling': {
        'title': 'The shipped model by guidance and temperature',
        'axis': 'guidance',
        'figures': JUDGED,
        'points': _sampling(),
    },
    'sampling_by_scale': {
        'title': 'The shipped model: constant against rising by scale',
        'axis': 'mean guidance of the scales',
        'figures': JUDGED,
        'points': _sampling_by_scale(),
    },
}


def get_config(arg: str) -> ConfigDict:
    """The point `arg`, EXPERIMENT/POINT, or the training of a tokenizer, tokenizers/NAME.

    Raises:
      ValueError: the experiment, point or tokenizer is unknown, or the point trains nothing.
    """
    name, _, point = arg.partition('/')
    if name == 'tokenizers':
        return _tokenizer(point)
    if name not in EXPERIMENTS:
        raise ValueError(f'unknown experiment {name!r}; known: {", ".join(EXPERIMENTS)}')
    points = EXPERIMENTS[name]['points']
    if point not in points:
        raise ValueError(f'unknown point {point!r} of {name}; known: {", ".join(points)}')
    if 'evaluate' in points[point]:
        raise ValueError(
            f'point {point} of {name} trains nothing; infinity-jax experiment run evaluates it'
        )
    config = _demo_of('t2i.py')
    config.run_dir = f'runs/experiments/{name}/{point}/seed_0'
    fields = {'grids': (), **SMALL, **points[point]['fields']}
    tokenizer = points[point].get('tokenizer')
    if tokenizer:
        fields['tokenizer'] = f'runs/experiments/tokenizers/{tokenizer}/model'
        fields['transformer.bits'] = TOKENIZERS[tokenizer]
    with config.unlocked():
        config.update_from_flattened_dict(fields)
    return config


def _tokenizer(name: str) -> ConfigDict:
    if name not in TOKENIZERS:
        raise ValueError(f'unknown tokenizer {name!r}; known: {", ".join(TOKENIZERS)}')
    config = _demo_of('tokenizer.py')
    config.run_dir = f'runs/experiments/tokenizers/{name}'
    with config.unlocked():
        config.update_from_flattened_dict({**SMALL_TOKENIZER, 'tokenizer.bits': TOKENIZERS[name]})
    return config


def _demo_of(file: str) -> ConfigDict:
    """The variant 'demo' of another config file in this folder."""
    path = pathlib.Path(__file__).with_name(file)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config('demo')
