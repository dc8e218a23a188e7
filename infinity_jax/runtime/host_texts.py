"""Texts that the processes of a run exchange; all of them must make the same calls."""

import json

import jax
import numpy as np
from jax.experimental import multihost_utils


def gather_texts(text: str) -> list[str]:
    """The text of every process of the run, by process index; each must call it."""
    if jax.process_count() == 1:
        return [text]
    content = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array([content.size], np.int32)).reshape(-1)
    padded = np.zeros(max(int(sizes.max()), 1), np.uint8)  # no text is no array
    padded[: content.size] = content
    rows = multihost_utils.process_allgather(padded).reshape(len(sizes), -1)
    return [row[:size].tobytes().decode() for row, size in zip(rows, sizes.tolist(), strict=True)]


def from_first_process(texts: list[str]) -> list[str]:
    """Process 0's texts on every process, for work that all their devices do together."""
    if jax.process_count() == 1:
        return texts
    data = np.frombuffer(json.dumps(texts).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(data.size)))
    # The other processes only contribute an array of that size.
    data = multihost_utils.broadcast_one_to_all(np.resize(data, size))
    return json.loads(np.asarray(data, np.uint8).tobytes())


def first_text(text: str) -> str:
    """The text of the first process that has one, on every process; '' where none has any."""
    return next(filter(None, gather_texts(text)), '')
