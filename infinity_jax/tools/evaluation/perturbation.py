"""How many bits, and how many indices, keep their value when the features of images move a little.

The paper's argument (3.3) for predicting bits: a small change of the continuous features changes a
few bits of a code, but any changed bit gives its token another index. No transformer is needed.
"""

import json
import os
import pathlib
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from infinity_jax.config import required
from infinity_jax.errors import UserError
from infinity_jax.images import check_writable, from_uint8
from infinity_jax.tokenizer.autoencoder import Autoencoder
from infinity_jax.tokenizer.quantizer import quantize
from infinity_jax.tools.evaluation.tokenizer_images import emoji_images
from infinity_jax.weights.model_folder import LoadedModel, load_model

STRENGTHS = (0.01, 0.03, 0.1, 0.3)  # of the noise, times the root mean square of the features
JSON = 'perturbation.json'
BATCH = 50


def evaluate_perturbation(
    checkpoint: str | os.PathLike[str],
    *,
    count: int = 200,
    seed: int = 0,
    out: str | os.PathLike[str] = '.',
) -> dict[str, Any]:
    """Perturbs features of held-out emoji, prints a table and writes perturbation.json into `out`.

    Args:
      checkpoint: a model folder with a tokenizer that has its own grids.
      count: images.
      seed: of the Gaussian noise.
      out: folder.

    Returns:
      the content of perturbation.json: per strength the shares of bits and of indices (tokens all
      of whose bits are the same) that keep their value, over all scales and by scale.

    Raises:
      UserError: there is no such tokenizer, it names no grids, or `count` is not positive.
    """
    if count < 1:
        raise UserError(f'count is {count}; wanted 1 or more images')
    check_writable(pathlib.Path(out) / JSON)
    loaded = load_model(checkpoint, parts=('tokenizer',))
    if loaded.configs.schedule is None:
        raise UserError(f'{checkpoint} names no grids; wanted a tokenizer trained with grids')
    features = _features(loaded, count)
    grids = loaded.configs.schedule.code_grids(loaded.configs.spatial_patchify)
    bits_of = jax.jit(lambda features: quantize(features, grids).bits)
    scale = float(np.sqrt(np.mean(np.square(features))))
    noise = np.random.default_rng(seed).standard_normal(features.shape).astype(np.float32)
    before = bits_of(features)
    results: dict[str, Any] = {
        'model': str(checkpoint),
        'bits': features.shape[-1],
        'count': count,
        'seed': seed,
        'strengths': {
            f'{strength:g}': kept_shares(before, bits_of(features + strength * scale * noise))
            for strength in STRENGTHS
        },
    }
    (pathlib.Path(out) / JSON).write_text(json.dumps(results, indent=2) + '\n', encoding='utf-8')
    print(table(results))
    return results


def kept_shares(before: tuple[jax.Array, ...], after: tuple[jax.Array, ...]) -> dict[str, Any]:
    """Shares of the bits and of the indices that are the same, of all tokens and by scale.

    Args:
      before, after: per scale (B, h, w, d) bool.
    """
    same = [np.asarray(a == b).reshape(-1, a.shape[-1]) for a, b in zip(before, after, strict=True)]
    tokens = np.concatenate(same)
    return {
        'bits': float(tokens.mean()),
        'indices': float(tokens.all(-1).mean()),
        'bits_per_scale': [float(scale.mean()) for scale in same],
        'indices_per_scale': [float(scale.all(-1).mean()) for scale in same],
    }


def table(results: dict[str, Any]) -> str:
    """The shares of all tokens as text, one line per strength."""
    lines = [
        f'{results["count"]} images, codes of {results["bits"]} bits; noise in features of RMS 1',
        f'{"noise":>8}{"bits kept":>12}{"indices kept":>15}',
    ]
    for strength, shares in results['strengths'].items():
        lines.append(f'{strength:>8}{shares["bits"]:>12.1%}{shares["indices"]:>15.1%}')
    return '\n'.join(lines)


def _features(loaded: LoadedModel, count: int) -> np.ndarray:
    """The encoder's features (count, h, w, d) of the emoji that the tokenizer was trained on."""
    config = required(loaded.configs.tokenizer, 'tokenizer')
    schedule = required(loaded.configs.schedule, 'schedule')
    size = schedule.code_grids(loaded.configs.spatial_patchify)[-1][0] * config.stride
    subset = loaded.configs.training_data.get('subset', 'all')
    model = Autoencoder(config)

    @jax.jit
    def encode(params: Any, pixels: jax.Array) -> jax.Array:
        features = model.apply({'params': params}, from_uint8(pixels), method=Autoencoder.encode)
        return cast(jax.Array, features).astype(jnp.float32)

    images = emoji_images(subset, count, size).batches(min(count, BATCH))
    return np.concatenate([np.asarray(encode(loaded.tokenizer_params, x)) for x in images])
