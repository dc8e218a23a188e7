"""A test for each rule of GenEval."""

import json

import pytest

from infinity_jax.tools.evaluation.geneval_rules import COLOURS, Detection, judge, relations


def found(name, x=0.0, y=0.0, confidence=0.95, size=10.0):
    """A square object with its centre at (x, y)."""
    half = size / 2
    return Detection(name, (x - half, y - half, x + half, y + half), confidence)


def line(*include, tag='', exclude=()):
    clauses = [{'class': name, 'count': 1, **rest} for name, rest in include]
    return {'tag': tag, 'include': clauses, 'exclude': list(exclude), 'prompt': 'a photo'}


CAT, DOG = ('cat', {}), ('dog', {})


def test_every_include_clause_must_hold():
    both = line(CAT, DOG)
    assert judge(both, [found('cat'), found('dog')]) == (True, ())
    assert judge(both, [found('cat'), found('cow')]) == (False, ('dog: 0 found, wanted 1',))
    assert len(judge(both, []).reasons) == 2


def test_more_objects_than_asked_for_are_fine_unless_excluded():
    three = [found('cat', x) for x in (0, 50, 100)]
    two = ('cat', {'count': 2})
    assert judge(line(two), three).correct
    exclude = [{'class': 'cat', 'count': 3}]
    assert judge(line(two, exclude=exclude), three) == (
        False,
        ('cat: 3 found, wanted fewer than 3',),
    )
    assert judge(line(two, exclude=exclude), three[:2]).correct
    assert not judge(line(two, exclude=exclude), three[:1]).correct


def test_a_detection_counts_above_a_confidence_that_is_higher_for_counting():
    assert judge(line(CAT), [found('cat', confidence=0.31)]).correct
    assert not judge(line(CAT), [found('cat', confidence=0.3)]).correct
    assert not judge(line(CAT, tag='counting'), [found('cat', confidence=0.9)]).correct
    assert judge(line(CAT, tag='counting'), [found('cat', confidence=0.91)]).correct


def test_sixteen_objects_of_a_class_are_seen():
    many = [found('cat', 30 * i) for i in range(20)]
    assert judge(line(('cat', {'count': 16})), many).correct
    assert not judge(line(('cat', {'count': 17})), many).correct


def test_colour_is_looked_at_for_the_most_confident_objects_alone():
    colours = {0.0: 'red', 50.0: 'blue'}
    asked = []

    def colour_of(each):
        asked.append(each)
        return colours[(each.box[0] + each.box[2]) / 2]

    red = line(('cat', {'color': 'red'}))
    sure, unsure = found('cat', 0, confidence=0.9), found('cat', 50, confidence=0.8)
    assert judge(red, [unsure, sure], colour_of).correct and asked == [sure]
    sure, unsure = found('cat', 0, confidence=0.8), found('cat', 50, confidence=0.9)
    verdict = judge(red, [sure, unsure], colour_of)
    assert verdict == (False, ('cat: blue found, wanted 1 red',))
    two = line(('cat', {'color': 'red', 'count': 2}))
    assert not judge(two, [sure, unsure], colour_of).correct


def test_a_colour_needs_something_that_names_it():
    with pytest.raises(ValueError, match='there is no colour_of'):
        judge(line(('cat', {'color': 'red'})), [found('cat')])


@pytest.mark.parametrize(
    'x, y, expected',
    [
        (-50, 0, {'left of'}),
        (50, 0, {'right of'}),
        (0, -50, {'above'}),
        (0, 50, {'below'}),
        (50, 50, {'right of', 'below'}),  # (50 - 2) / 70.7 = 0.68 along both axes
        (0, 0, set()),
        (2, 2, set()),  # a tenth of both extents, 10 + 10, is taken off
        (2.5, 0, set()),  # 0.5 / 2.5 = 0.2
        (3.9, 0, set()),  # 1.9 / 3.9 = 0.487
        (4.1, 0, {'right of'}),  # 2.1 / 4.1 = 0.512
        (50, 30, {'right of'}),  # 28 / 58.3 = 0.48 down
        (50, 33, {'right of', 'below'}),  # 31 / 59.9 = 0.52 down
    ],
)
def test_relations_of_centres(x, y, expected):
    assert relations(found('a', x, y).box, found('b').box) == expected


def test_large_objects_must_be_farther_apart():
    assert relations(found('a', 30, size=10).box, found('b', size=10).box) == {'right of'}
    assert relations(found('a', 30, size=100).box, found('b', size=100).box) == set()


def test_a_position_is_that_to_the_objects_of_an_earlier_clause():
    left = line(CAT, ('dog', {'position': ['left of', 0]}))
    assert judge(left, [found('cat', 50), found('dog', 0)]).correct
    verdict = judge(left, [found('cat', 0), found('dog', 50)])
    assert verdict == (False, ('dog: right of, wanted left of the cat',))
    at_once = judge(left, [found('cat'), found('dog')])
    assert at_once.reasons == ('dog: at the same place, wanted left of the cat',)
    absent = judge(left, [found('dog')])
    assert absent.reasons == ('cat: 0 found, wanted 1', 'dog: nothing to be left of')


def test_a_position_is_that_of_the_most_confident_objects():
    left = line(CAT, ('dog', {'position': ['left of', 0]}))
    dogs = [found('dog', 90, confidence=0.5), found('dog', 0, confidence=0.9)]
    assert judge(left, [found('cat', 50), *dogs]).correct


# A line of each task, as published.
PUBLISHED = """
{"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"}
{"tag": "two_object", "include": [{"class": "bench", "count": 1}, {"class": "sports ball", "count": 1}], "prompt": "a photo of a bench and a sports ball"}
{"tag": "counting", "include": [{"class": "clock", "count": 2}], "exclude": [{"class": "clock", "count": 3}], "prompt": "a photo of two clocks"}
{"tag": "colors", "include": [{"class": "fire hydrant", "count": 1, "color": "blue"}], "prompt": "a photo of a blue fire hydrant"}
{"tag": "position", "include": [{"class": "teddy bear", "count": 1}, {"class": "dog", "count": 1, "position": ["right of", 0]}], "prompt": "a photo of a dog right of a teddy bear"}
{"tag": "color_attr", "include": [{"class": "wine glass", "count": 1, "color": "purple"}, {"class": "apple", "count": 1, "color": "black"}], "prompt": "a photo of a purple wine glass and a black apple"}
"""  # noqa: E501
LINES = {(parsed := json.loads(text))['tag']: parsed for text in PUBLISHED.strip().split('\n')}


@pytest.mark.parametrize(
    'tag, objects, correct',
    [
        ('single_object', 'bench', True),
        ('single_object', 'chair', False),
        ('two_object', 'sports ball, bench, person', True),
        ('two_object', 'sports ball, sports ball', False),
        ('counting', 'clock', False),
        ('counting', 'clock, clock', True),
        ('counting', 'clock, clock, clock', False),
        ('colors', 'blue fire hydrant', True),
        ('colors', 'red fire hydrant', False),
        ('position', 'teddy bear, dog', True),
        ('position', 'dog, teddy bear', False),
        ('color_attr', 'black apple, purple wine glass', True),
        ('color_attr', 'purple apple, black wine glass', False),
    ],
)
def test_the_published_lines(tag, objects, correct):
    detections, colours = [], {}
    for i, name in enumerate(objects.split(', ')):  # from left to right
        colour, _, rest = name.partition(' ')
        coloured = colour in COLOURS
        detections.append(found(rest if coloured else name, 50 * i))
        colours[detections[-1].box] = colour
    assert judge(LINES[tag], detections, lambda each: colours[each.box]).correct is correct


def test_a_position_refers_to_a_clause_before_it():
    with pytest.raises(ValueError, match='refers to clause 1, not one before it'):
        judge(line(CAT, ('dog', {'position': ['above', 1]})), [found('cat'), found('dog')])
