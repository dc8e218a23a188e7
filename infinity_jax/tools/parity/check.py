"""Compares this implementation with arrays that the released one wrote: `infinity-jax check DIR`.

A folder holds `meta.json` (dimensions, schedule, guidance), `arrays.npz`, and the weights as
`infinity*` and `vae*` (.pth, .safetensors, or a folder of shards); or it is a T5 folder with
`arrays.npz`. The inputs of every stage are the reference's own, so that errors do not accumulate.
"""

from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from infinity_jax.errors import UserError
from infinity_jax.text.t5 import T5Encoder
from infinity_jax.tools.parity.reference import Row, load_arrays, load_reference
from infinity_jax.tools.parity.stages import model_rows
from infinity_jax.weights.t5_folder import load_encoder

MAX_T5_ERROR = 4e-6  # from arrays in float64; transformers' own float32 is 3.6e-6 from them
MAX_MARGIN = 1e-5  # a bit may differ only if its two values were almost equally likely
MAX_GREY_LEVELS = 1


def check_folder(folder: str | Path) -> int:
    """Runs every check for which the folder has arrays, and prints a table.

    Returns:
      0 if all of them hold, else 1.

    Raises:
      UserError: the folder lacks a part, or its weights have other dimensions than its meta.json.
    """
    folder = Path(folder)
    if not (folder / 'arrays.npz').is_file():
        raise UserError(f'{folder}: no arrays.npz in it; wanted a folder of reference arrays')
    passed = True
    print(f'{"stage":<34}{"error":>10}  {"wrong bits":>18}  {"margin":>9}  verdict')
    with jax.default_matmul_precision('highest'):
        for row in _rows(folder):
            verdict = judge(row)
            passed &= verdict != 'FAILED'
            print(_line(row, verdict), flush=True)
    print('passed' if passed else 'FAILED')
    return 0 if passed else 1


def judge(row: Row) -> str:
    """The verdict on a row: 'ok', 'FAILED' or 'skipped'."""
    if row.skipped:
        return 'skipped'
    # If the reference's own rounding is near the limit, both must be within the limit of float64.
    near = row.exact is not None and max(row.exact) <= row.limit
    good = [
        row.error is None or row.error <= row.limit or near,  # a NaN fails
        row.grey_levels is None or row.grey_levels <= MAX_GREY_LEVELS,
        not row.wrong_bits or row.margin <= MAX_MARGIN,
    ]
    return 'ok' if all(good) else 'FAILED'


def _line(row: Row, verdict: str) -> str:
    error = '' if row.error is None else f'{row.error:.1e}'
    if row.grey_levels is not None:
        error = f'{row.grey_levels} grey'
    bits = '' if row.wrong_bits is None else f'{row.wrong_bits} of {row.bits}'
    margin = f'{row.margin:.1e}' if row.wrong_bits else ''
    note = f': {row.skipped}' if row.skipped else ''
    if row.exact is not None:
        ours, theirs = row.exact
        note = f': ours to float64 {ours:.1e}, float64 to the reference {theirs:.1e}'
    return f'{row.stage:<34}{error:>10}  {bits:>18}  {margin:>9}  {verdict}{note}'


def _rows(folder: Path) -> Iterator[Row]:
    if (folder / 'meta.json').is_file():
        yield from model_rows(load_reference(folder))
    elif (folder / 'config.json').is_file():
        yield from t5_rows(folder)
    else:
        raise UserError(f'{folder}: neither meta.json (a model) nor config.json (T5) is in it')


def t5_rows(folder: Path) -> Iterator[Row]:
    """The T5 encoder's features where the mask is 1."""
    arrays = load_arrays(folder)
    config, params = load_encoder(folder)
    mask = arrays['attention_mask'].astype(bool)
    ids, lengths = arrays['input_ids'].astype(np.int32), mask.sum(1, dtype=np.int32)
    ours = np.asarray(jax.jit(T5Encoder(config).apply)({'params': params}, ids, lengths))
    theirs = arrays['last_hidden_state']
    error = float(np.abs(ours - theirs)[mask].max() / np.abs(theirs[mask]).max())
    yield Row('T5 features', error, limit=MAX_T5_ERROR)
