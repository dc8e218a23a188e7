"""Whether an image shows its scene, by GenEval's rules."""

from infinity_jax.emoji.scene import COLOURED, Scene
from infinity_jax.emoji.scene_search import Sight
from infinity_jax.tools.evaluation.geneval_rules import Detection, Verdict, judge


def class_and_colour(emoji: str) -> tuple[str, str | None]:
    """The class of an emoji for the judge, and its colour: 'red heart' is a heart."""
    if emoji in COLOURED:
        colour, kind = emoji.split()
        return kind, colour
    return emoji, None


def line_of(scene: Scene) -> dict:
    """The scene as a line of GenEval's metadata: what an image has to include and exclude.

    The line has no tag: the tag of counting asks for the confidence of a network.
    """
    names = scene.emoji
    if scene.task == 'counting':
        wanted = {'class': names[0], 'count': len(names)}
        return {'include': [wanted], 'exclude': [{'class': names[0], 'count': len(names) + 1}]}
    clauses = []
    for name in names:
        kind, colour = class_and_colour(name)
        clauses.append({'class': kind, 'count': 1} | ({'color': colour} if colour else {}))
    if scene.task == 'position':  # of the second clause to the first
        clauses = [clauses[1], clauses[0] | {'position': [scene.relation, 0]}]
    return {'include': clauses}


def verdict(scene: Scene, sight: Sight) -> Verdict:
    """Applies the rules to what was found; a background has to be right where it is mentioned."""
    detections, colours = [], {}
    for found in sight.found:
        kind, colour = class_and_colour(found.emoji)
        detections.append(Detection(kind, found.box, found.explained))
        colours[found.box] = colour or 'no colour'
    seen = judge(line_of(scene), detections, lambda detection: colours[detection.box])
    if scene.mention_background and sight.background != scene.background:
        reason = f'background: {sight.background}, wanted {scene.background}'
        return Verdict(False, (*seen.reasons, reason))
    return seen
