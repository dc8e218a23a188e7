"""GenEval's rules: whether the objects that a detector found are those of a prompt.

The rules are those of the benchmark (arXiv 2310.11513 and its code); the detector, and what names
the colour of an object, may be any.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

COLOURS = (
    'red', 'orange', 'yellow', 'green', 'blue', 'purple', 'pink', 'brown', 'black', 'white',
)  # fmt: skip
RELATIONS = ('left of', 'right of', 'above', 'below')
CONFIDENCE = 0.3  # detections up to it are left out
COUNTING_CONFIDENCE = 0.9  # the same for the task of counting
MAX_DETECTIONS = 16  # of a class
EXTENT_SHARE = 0.1  # of both extents; an offset of centres counts beyond it
RELATION_THRESHOLD = 0.5  # of the offset's direction


class Detection(NamedTuple):
    """An object that a detector found.

    Attributes:
      name: of its class.
      box: left, top, right, bottom, in any unit; y points down.
      confidence: 0 to 1.
    """

    name: str
    box: tuple[float, float, float, float]
    confidence: float


class Verdict(NamedTuple):
    """Whether an image shows its prompt, and a sentence about each rule that it breaks."""

    correct: bool
    reasons: tuple[str, ...]


def judge(
    line: Mapping[str, Any],
    detections: Sequence[Detection],
    colour_of: Callable[[Detection], str] | None = None,
) -> Verdict:
    """Applies the rules to one image.

    All `include` clauses must hold and no `exclude` clause. An `include` clause looks at the most
    confident `count` objects of its class alone; colour and position at just these.

    Args:
      line: of GenEval's metadata: tag, include, exclude.
      detections: all of the image, in any order.
      colour_of: names one of `COLOURS`; called only for clauses with a colour.

    Raises:
      ValueError: a clause has a colour and there is no `colour_of`, or its position refers to a
        clause that is not before it.
    """
    objects = _by_class(line.get('tag', ''), detections)
    reasons: list[str] = []
    matched: list[list[Detection] | None] = []  # objects of each clause; None where it fails
    for clause in line.get('include', ()):
        found = objects.get(clause['class'], [])[: clause['count']]
        reason = _broken_clause(clause, found, matched, colour_of)
        matched.append(None if reason else found)
        if reason:
            reasons.append(reason)
    for clause in line.get('exclude', ()):
        count = len(objects.get(clause['class'], []))
        if count >= clause['count']:
            reasons.append(f'{clause["class"]}: {count} found, wanted fewer than {clause["count"]}')
    return Verdict(not reasons, tuple(reasons))


def relations(box: Sequence[float], target: Sequence[float]) -> set[str]:
    """How a box lies to a target: some of `RELATIONS`, none if they are at the same place.

    The offset of the centres is shortened along each axis by a tenth of both extents. What remains
    is divided by the length of the whole offset; a relation holds above one half.
    """
    corners = np.array([box, target], np.float64).reshape(2, 2, 2)
    offset = corners[0].mean(0) - corners[1].mean(0)
    extents = np.abs(corners[:, 1] - corners[:, 0]).sum(0)
    beyond = np.maximum(np.abs(offset) - EXTENT_SHARE * extents, 0) * np.sign(offset)
    if (np.abs(beyond) < 1e-3).all():
        return set()
    x, y = beyond / np.linalg.norm(offset)
    holds = (
        x < -RELATION_THRESHOLD,
        x > RELATION_THRESHOLD,
        y < -RELATION_THRESHOLD,
        y > RELATION_THRESHOLD,
    )
    return {name for name, true in zip(RELATIONS, holds, strict=True) if true}


def _by_class(tag: str, detections: Sequence[Detection]) -> dict[str, list[Detection]]:
    """The detections that count, by class, the most confident first."""
    limit = COUNTING_CONFIDENCE if tag == 'counting' else CONFIDENCE
    objects: dict[str, list[Detection]] = {}
    for each in sorted(detections, key=lambda found: -found.confidence):
        if each.confidence > limit and len(objects.get(each.name, ())) < MAX_DETECTIONS:
            objects.setdefault(each.name, []).append(each)
    return objects


def _broken_clause(
    clause: Mapping[str, Any],
    found: list[Detection],
    matched: list[list[Detection] | None],
    colour_of: Callable[[Detection], str] | None,
) -> str | None:
    """Why an `include` clause does not hold; None if it does."""
    name, count = clause['class'], clause['count']
    if len(found) < count:
        return f'{name}: {len(found)} found, wanted {count}'
    if 'color' in clause:
        if colour_of is None:
            raise ValueError(f'{name}: the clause has a colour, and there is no colour_of')
        colours = [colour_of(each) for each in found]
        if colours.count(clause['color']) < count:
            return f'{name}: {", ".join(colours)} found, wanted {count} {clause["color"]}'
    if 'position' in clause:
        relation, target = clause['position']
        if not 0 <= target < len(matched):
            raise ValueError(f'{name}: its position refers to clause {target}, not one before it')
        targets = matched[target]
        if targets is None:
            return f'{name}: nothing to be {relation}'
        for each in found:
            for other in targets:
                seen = relations(each.box, other.box)
                if relation not in seen:
                    names = ' and '.join(sorted(seen)) or 'at the same place'
                    return f'{name}: {names}, wanted {relation} the {other.name}'
    return None
