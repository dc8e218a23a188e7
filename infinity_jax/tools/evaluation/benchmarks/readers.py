"""Readers of the prompt files of GenEval, DPG-Bench, ImageReward, HPSv2 and of captions.

The layouts follow the code of the judges: GenEval's `evaluate_images.py` opens the folders whose
names are digits, reads `metadata.jsonl` as one JSON object and takes the files of `samples` that
match `\\d+\\.png`; ImageReward's reads `metadata.jsonl` as one JSON list; the judges of HPSv2 and
DPG-Bench take everything in their folder for images, so that it must hold nothing else.
"""

import csv
import io
import json
import pathlib
from collections.abc import Callable

from infinity_jax.errors import UserError
from infinity_jax.tools.evaluation.benchmarks.layout import (
    GRID_EDGE,
    Benchmark,
    Item,
    benchmark_of,
    checked_name,
    checked_prompt,
    prompt_of,
    read_json,
    read_json_lines,
    read_text,
)

HPS_STYLES = ('anime', 'concept-art', 'paintings', 'photo')
CAPTION_KEYS = ('text', 'prompt', 'caption', 'long_caption')


def read_geneval(path: pathlib.Path, num: int, out: pathlib.Path) -> Benchmark:
    """GenEval: a line of `evaluation_metadata.jsonl` per prompt."""
    items = []
    for i, (line, content) in enumerate(read_json_lines(path)):
        place = f'--prompts {path}: prompt {i + 1}'
        prompt = prompt_of(content, ('prompt',), place)
        if not isinstance(content.get('tag'), str):
            raise UserError(f'{place} has no tag; wanted the lines of evaluation_metadata.jsonl')
        files = tuple(f'{i:05}/samples/{j:04}.png' for j in range(num))
        items.append(Item(prompt, files, ((f'{i:05}/metadata.jsonl', line + '\n'),)))
    return benchmark_of('geneval', items, num)


def read_dpg(path: pathlib.Path, num: int, out: pathlib.Path) -> Benchmark:
    """DPG-Bench: a folder of NAME.txt, or `dpg_bench.csv`."""
    if num != GRID_EDGE**2:
        raise UserError(f'--num is {num}; DPG-Bench wants {GRID_EDGE**2} images, as one grid')
    prompts: dict[str, str] = {}
    if path.is_dir():
        for file in sorted(path.glob('*.txt')):
            prompts[file.stem] = read_text(file).strip()
        if not prompts:
            raise UserError(f'--prompts {path}: no *.txt in it; name the folder of prompts')
    else:
        prompts = _dpg_table(path)
    items, seen = [], set[str]()
    for name, prompt in prompts.items():
        place = f'--prompts {path}: the prompt {name!r}'
        if '.' in name:  # the judge cuts the name of a file at the first dot
            raise UserError(f'{place} has a dot in its name; the judge would not find it')
        image = f'images/{checked_name(name, seen, place)}.png'
        items.append(Item(checked_prompt(prompt, place), (image,)))
    return benchmark_of('dpg', items, num)


def _dpg_table(path: pathlib.Path) -> dict[str, str]:
    rows = csv.DictReader(io.StringIO(read_text(path)))
    if not {'item_id', 'text'} <= set(rows.fieldnames or ()):
        raise UserError(
            f'--prompts {path}: no columns item_id and text; wanted a folder of *.txt, or '
            'dpg_bench.csv'
        )
    return {row['item_id']: row['text'] for row in rows}


def read_imagereward(path: pathlib.Path, num: int, out: pathlib.Path) -> Benchmark:
    """ImageReward: a JSON list of {id, prompt}, `benchmark-prompts.json`."""
    content = read_json(path)
    if not isinstance(content, list) or not content:
        raise UserError(f'--prompts {path}: wanted a JSON list of objects with id and prompt')
    items, seen, table = [], set[str](), []
    for i, entry in enumerate(content):
        place = f'--prompts {path}: entry {i + 1}'
        if not isinstance(entry, dict):
            raise UserError(f'{place} is a {type(entry).__name__}; wanted an object')
        name = checked_name(entry.get('id'), seen, f'{place}: id')
        files = tuple(f'{name}/{name}_{j}.jpg' for j in range(num))
        items.append(Item(prompt_of(entry, ('prompt',), place), files))
        paths = [str(out.absolute() / file) for file in files]
        table.append({**entry, 'gen_image_paths': paths})
    return benchmark_of('imagereward', items, num, (('metadata.jsonl', json.dumps(table)),))


def read_hpsv2(path: pathlib.Path, num: int, out: pathlib.Path) -> Benchmark:
    """HPSv2: a folder of STYLE.json, each a list of prompts, or one JSON object of all."""
    if num != 1:
        raise UserError(f'--num is {num}; HPSv2 wants 1 image per prompt')
    if path.is_dir():
        lists = {style: path / f'{style}.json' for style in HPS_STYLES}
        styles = {style: read_json(file) for style, file in lists.items() if file.exists()}
        if not styles:
            raise UserError(f'--prompts {path}: no {", ".join(HPS_STYLES)} (.json) in it')
    else:
        styles = read_json(path)
        if not isinstance(styles, dict) or not styles:
            raise UserError(f'--prompts {path}: wanted a JSON object from styles to prompts')
    items, seen = [], set[str]()
    for style, prompts in styles.items():
        place = f'--prompts {path}: style {style!r}'
        checked_name(style, seen, place)
        if not isinstance(prompts, list) or not prompts:
            raise UserError(f'{place} is not a list of prompts')
        for i, prompt in enumerate(prompts):
            file = f'images/{style}/{i:05}.jpg'
            items.append(Item(checked_prompt(prompt, f'{place}, prompt {i + 1}'), (file,)))
    return benchmark_of('hpsv2', items, num)


def read_captions(path: pathlib.Path, num: int, out: pathlib.Path) -> Benchmark:
    """Captions, and the images that they describe if the lines name them (`image_path`)."""
    if num != 1:
        raise UserError(f'--num is {num}; a set for FID has 1 image per caption')
    lines = read_json_lines(path)
    with_originals = 'image_path' in lines[0][1]
    items = []
    for i, (_, content) in enumerate(lines):
        place = f'--prompts {path}: caption {i + 1}'
        original = None
        if with_originals:
            if not isinstance(content.get('image_path'), str):
                raise UserError(f'{place} has no image_path; name one in all lines, or in none')
            source = path.parent / content['image_path']
            if not source.is_file():
                raise UserError(f'{place}: {source}: no such image; correct its image_path')
            original = (source, f'gt/{i:06}.png')
        prompt = prompt_of(content, CAPTION_KEYS, place)
        items.append(Item(prompt, (f'pred/{i:06}.png',), original=original))
    return benchmark_of('captions', items, num)


READERS: dict[str, Callable[[pathlib.Path, int, pathlib.Path], Benchmark]] = {
    'geneval': read_geneval,
    'dpg': read_dpg,
    'imagereward': read_imagereward,
    'hpsv2': read_hpsv2,
    'captions': read_captions,
}
