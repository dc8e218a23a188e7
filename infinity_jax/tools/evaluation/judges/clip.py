"""CLIP score: how well images agree with their prompts (arXiv 2104.08718), by transformers' CLIP.

transformers has CLIP for torch alone, since version 5.
"""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from infinity_jax.errors import UserError, in_one_line
from infinity_jax.tools.evaluation.benchmarks.layout import Benchmark
from infinity_jax.tools.evaluation.judges.image_folder import (
    check_complete,
    read_benchmark,
    read_pixels,
    write_scores,
)
from infinity_jax.tools.evaluation.judges.packages import import_optional

INSTALL = "pip install 'infinity_jax[clip]'"
FILE = 'clip_scores.json'
BATCH = 32
OTHERS = 'with the prompt of another image'
TRUE = 'true images with their captions'


class Clip(NamedTuple):
    """The two towers of a CLIP model; both give unit vectors (B, D).

    Attributes:
      name: of its folder.
      images: of uint8 images, which may differ in size.
      texts: of prompts.
      tokens: that a prompt may have; longer ones are cut.
      lengths: the tokens of each prompt.
    """

    name: str
    images: Callable[[Sequence[np.ndarray]], np.ndarray]
    texts: Callable[[Sequence[str]], np.ndarray]
    tokens: int
    lengths: Callable[[Sequence[str]], Sequence[int]]


def evaluate_clip(out: pathlib.Path, model: pathlib.Path) -> dict[str, Any]:
    """Scores each image of a benchmark by its prompt; prints a calibration first.

    Args:
      out: folder of `evaluate geneval`, `imagereward`, `hpsv2` or `captions`.
      model: folder of a CLIP model, as transformers saves it.

    Returns:
      the content of clip_scores.json, which is written into the folder.

    Raises:
      UserError: images are absent or show several images, the model is another one, or torch is
        not installed.
    """
    benchmark = read_benchmark(out)
    if benchmark.is_grid:
        raise UserError(f'{out}: its files show {benchmark.num} images each; wanted one image each')
    check_complete(out, benchmark)
    clip = load_clip(model)
    prompts = [item.prompt for item in benchmark.items]
    texts = _embed(clip.texts, prompts, 'prompts')
    cosines, others = _compare(clip, out, [item.files for item in benchmark.items], texts)
    baseline = {OTHERS: _score(others)}
    if true := _true_images(out, benchmark):
        own, _ = _compare(clip, out, true, texts)
        baseline[TRUE] = _score(own)
    print(f'calibration: CLIP score of {clip.name}')
    print('\n'.join(f'  {name:34}{value:8.2f}' for name, value in baseline.items()))
    cut = sum(length > clip.tokens for length in clip.lengths(prompts))
    if cut:
        print(f'  {cut} of {len(prompts)} prompts are cut at {clip.tokens} tokens')
    results = {
        'model': clip.name,
        'calibration': baseline,
        'entries': [
            {'prompt': item.prompt, 'files': list(item.files), 'cosines': [float(x) for x in row]}
            for item, row in zip(benchmark.items, cosines, strict=True)
        ],
    }
    write_scores(out / FILE, results)
    return results


def load_clip(folder: pathlib.Path) -> Clip:
    """A CLIP model of a local folder, on a GPU if torch sees one.

    Raises:
      UserError: the folder has no CLIP model, or torch is not installed.
    """
    torch = import_optional('torch', INSTALL)
    transformers = import_optional('transformers', INSTALL)
    if not (folder / 'config.json').is_file():
        raise UserError(f'--model {folder}: no config.json in it; wanted a folder of a CLIP model')
    try:
        kind = transformers.AutoConfig.from_pretrained(folder, local_files_only=True).model_type
        if kind != 'clip':
            raise UserError(f'--model {folder}: of type {kind}; wanted clip')
        model, notes = transformers.CLIPModel.from_pretrained(
            folder, local_files_only=True, output_loading_info=True
        )
        processor = transformers.AutoProcessor.from_pretrained(folder, local_files_only=True)
    except UserError:
        raise
    except Exception as error:  # transformers' and safetensors', of many kinds
        raise UserError(
            f'--model {folder}: cannot be read ({in_one_line(error, 300)}); wanted a folder of a '
            'CLIP model'
        ) from None
    if notes['missing_keys']:
        missing = sorted(notes['missing_keys'])
        raise UserError(
            f'--model {folder}: {missing[0]} and {len(missing) - 1} more weights are absent; copy '
            'the folder again'
        )
    model = model.eval().to('cuda' if torch.cuda.is_available() else 'cpu')
    return _towers(folder.name, model, processor, torch)


def _towers(name: str, model: Any, processor: Any, torch: Any) -> Clip:
    tokens = model.config.text_config.max_position_embeddings

    def unit(output: Any) -> np.ndarray:
        vectors = output.pooler_output.float().cpu().numpy()
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def images(pixels: Sequence[np.ndarray]) -> np.ndarray:
        inputs = processor.image_processor(list(pixels), return_tensors='pt').to(model.device)
        with torch.inference_mode():
            return unit(model.get_image_features(**inputs))

    def texts(prompts: Sequence[str]) -> np.ndarray:
        inputs = processor.tokenizer(
            list(prompts), padding=True, truncation=True, max_length=tokens, return_tensors='pt'
        ).to(model.device)
        with torch.inference_mode():
            return unit(model.get_text_features(**inputs))

    def lengths(prompts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in processor.tokenizer(list(prompts), verbose=False)['input_ids']]

    return Clip(name, images, texts, tokens, lengths)


def _embed(tower: Callable[[Any], np.ndarray], inputs: Sequence[Any], what: str) -> np.ndarray:
    starts = tqdm(range(0, len(inputs), BATCH), what, unit='batch', disable=None)
    return np.concatenate([tower(inputs[start : start + BATCH]) for start in starts])


def _compare(
    clip: Clip, out: pathlib.Path, files: Sequence[Sequence[str]], texts_ND: np.ndarray
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Cosines of each prompt's images with the prompt, and with the prompt after it."""
    paths = [out / file for group in files for file in group]
    vectors = _embed(lambda part: clip.images([read_pixels(p) for p in part]), paths, 'images')
    groups = np.split(vectors, np.cumsum([len(group) for group in files])[:-1])
    following = np.roll(texts_ND, -1, axis=0)
    own = [group @ text for group, text in zip(groups, texts_ND, strict=True)]
    return own, [group @ text for group, text in zip(groups, following, strict=True)]


def _true_images(out: pathlib.Path, benchmark: Benchmark) -> list[tuple[str, ...]]:
    """The copies of the images that the captions were written for, if there are any."""
    copies = [item.original[1] for item in benchmark.items if item.original is not None]
    if len(copies) < len(benchmark.items) or not all((out / file).exists() for file in copies):
        return []
    return [(file,) for file in copies]


def _score(cosines: Sequence[np.ndarray]) -> float:
    """Mean over images of 100 · max(cosine, 0)."""
    return float(100 * np.maximum(np.concatenate(cosines), 0).mean())
