"""Text in images, read by the package rapidocr, which has its weights with it."""

import logging
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from infinity_jax.errors import UserError, in_one_line
from infinity_jax.tools.evaluation.judges.image_folder import (
    check_complete,
    read_benchmark,
    read_pixels,
    write_scores,
)
from infinity_jax.tools.evaluation.judges.packages import import_optional
from infinity_jax.tools.evaluation.judges.text_rules import TextScore, score_text, wanted_text

INSTALL = "pip install 'infinity_jax[ocr]'"
FILE = 'text_scores.json'
HEIGHTS = (16, 8, 4)  # an image's edge over the height of letters, in the calibration
# Rendered for the calibration: three words or fewer, so that all fit at a quarter of the edge.
WORDS = ('OPEN', 'Fresh', 'jazz 42', 'Quiet', 'go!', 'Exit', 'kiwi', 'No 7')
COLOURS = (('black', 'white'), ('white', 'navy'), ('red', 'khaki'), ('yellow', 'darkgreen'))
EACH = 2  # of these colours for a word

Reader = Callable[[np.ndarray], list[str]]  # uint8 (Y, X, 3) -> lines


def evaluate_text(out: pathlib.Path) -> dict[str, Any]:
    """Reads the images of prompts that ask for text in quotes; prints a calibration first.

    Args:
      out: folder of `evaluate captions`, or of another benchmark with such prompts.

    Returns:
      the content of text_scores.json, which is written into the folder.

    Raises:
      UserError: no prompt asks for text, an image cannot be read, or rapidocr is not installed.
    """
    benchmark = read_benchmark(out)
    if benchmark.is_grid:
        raise UserError(f'{out}: its files show {benchmark.num} images each; wanted one image each')
    wanted = {i: wanted_text(item.prompt) for i, item in enumerate(benchmark.items)}
    asking = [i for i, texts in wanted.items() if texts]
    if not asking:
        raise UserError(
            f'{out}: no prompt asks for text in quotes, such as: a sign that says "OPEN"'
        )
    check_complete(out, benchmark)
    read = load_reader()
    size = read_pixels(out / benchmark.items[0].files[0]).shape[:2]
    shares = calibration(read, size)
    print(f'calibration: {EACH * len(WORDS)} rendered texts each, {size[1]} x {size[0]}')
    for name, (characters, exact) in shares.items():
        print(f'  {name:28}{characters:6.0%} of characters {exact:6.0%} exact')
    entries = []
    for i in tqdm(asking, 'reading', unit=' prompts', disable=None):
        item = benchmark.items[i]
        lines = [read(read_pixels(out / file)) for file in item.files]
        scores = [score_text(wanted[i], each)._asdict() for each in lines]
        entry = {'prompt': item.prompt, 'wanted': list(wanted[i]), 'files': list(item.files)}
        entries.append({**entry, 'read': lines, 'scores': scores})
    results = {'calibration': shares, 'entries': entries}
    write_scores(out / FILE, results)
    return results


def load_reader() -> Reader:
    """rapidocr with the weights of its package.

    Raises:
      UserError: it, or onnxruntime, is not installed.
    """
    rapidocr = import_optional('rapidocr', INSTALL)
    import_optional('onnxruntime', INSTALL)
    try:
        engine = rapidocr.RapidOCR(params={'Global.log_level': 'critical'})
    except Exception as error:  # of several packages
        raise UserError(f'rapidocr cannot start ({in_one_line(error, 200)}): {INSTALL}') from None
    logging.getLogger('RapidOCR').setLevel(logging.CRITICAL)

    def read(pixels_YX3: np.ndarray) -> list[str]:
        found = engine(np.ascontiguousarray(pixels_YX3[..., ::-1]))  # blue first
        return list(found.txts or ())

    return read


def calibration(read: Reader, size: tuple[int, int]) -> dict[str, tuple[float, float]]:
    """Share of characters, and of texts read exactly, by the height of rendered letters."""
    found = {}
    for part in HEIGHTS:
        scores: list[TextScore] = []
        for i, word in enumerate(WORDS):
            for j in range(i, i + EACH):
                pixels = render(word, size, part, COLOURS[j % len(COLOURS)], seed=i + j)
                scores.append(score_text((word,), read(pixels)))
        name = f'letters of {min(size) / part:.0f} pixels'
        count = len(scores)
        found[name] = (
            sum(x.characters for x in scores) / count,
            sum(x.exact for x in scores) / count,
        )
    return found


def render(
    text: str, size: tuple[int, int], part: int, colours: tuple[str, str], seed: int
) -> np.ndarray:
    """A text at a random place, uint8 (Y, X, 3).

    Args:
      text: one line.
      size: (Y, X) of the image.
      part: the image's shorter edge over the height of the font.
      colours: of the letters, and of the ground.
      seed: of the place.
    """
    image = Image.new('RGB', size[::-1], colours[1])
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(max(min(size) // part, 1))
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    random = np.random.default_rng(seed)
    x, y = (
        random.integers(0, max(int(room), 0) + 1) - start
        for room, start in ((size[1] - (right - left), left), (size[0] - (bottom - top), top))
    )
    draw.text((int(x), int(y)), text, colours[0], font)
    return np.asarray(image)
