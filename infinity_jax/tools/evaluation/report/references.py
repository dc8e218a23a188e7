"""Figures of Infinity that others measured, for comparison: guidance 4, temperature 1, 1024²."""

from collections.abc import Mapping
from typing import NamedTuple

PAPER = 'arXiv 2412.04431'
ISSUE = 'github.com/FoundationVision/Infinity/issues/{}'
SCALE_KV = 'github.com/Weepingchestnut/Lvar, evaluation'
OVERALL = 'overall'


class Reference(NamedTuple):
    """Figures of one source, by the names of the report's rows."""

    name: str
    source: str
    figures: Mapping[str, float]


REFERENCES: dict[str, tuple[Reference, ...]] = {
    'geneval': (
        Reference('paper, 2B, rewritten prompts', PAPER, {OVERALL: 0.73}),
        Reference('paper, 2B', PAPER, {OVERALL: 0.69}),
        Reference('paper, 8B, rewritten prompts', PAPER, {OVERALL: 0.79}),
        Reference(
            'a user, 2B, rewritten prompts',
            ISSUE.format(42),
            {
                'single_object': 1.0,
                'two_object': 0.8586,
                'counting': 0.6844,
                'colors': 0.8431,
                'position': 0.4175,
                'color_attr': 0.5525,
                OVERALL: 0.7260,
            },
        ),
        Reference(
            'a user, 2B',
            ISSUE.format(16),
            {
                'single_object': 0.9938,
                'two_object': 0.7702,
                'counting': 0.6219,
                'colors': 0.8457,
                'position': 0.2675,
                'color_attr': 0.5975,
                OVERALL: 0.6828,
            },
        ),
    ),
    'dpg': (
        Reference('paper, 2B', PAPER, {OVERALL: 83.46}),
        Reference('paper, 8B', PAPER, {OVERALL: 86.6}),
    ),
    'imagereward': (
        Reference('paper, 2B', PAPER, {OVERALL: 0.962}),
        Reference('a user, 2B', ISSUE.format(42), {OVERALL: 0.9212}),
        Reference('ScaleKV, 2B', SCALE_KV, {OVERALL: 0.943}),
    ),
    'hpsv2': (
        Reference('paper, 2B', PAPER, {OVERALL: 32.25}),
        Reference('a user, 2B', ISSUE.format(42), {OVERALL: 30.36}),
        Reference(
            'ScaleKV, 2B',
            SCALE_KV,
            {
                'paintings': 30.45,
                'photo': 29.33,
                'anime': 31.66,
                'concept-art': 30.41,
                OVERALL: 30.46,
            },
        ),
    ),
}
