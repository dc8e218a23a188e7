"""Compares parts of images with all emoji at once, composited on the background of each image."""

import functools
from collections.abc import Sequence

import numpy as np

from infinity_jax.emoji import artwork


@functools.lru_cache(maxsize=8)
def _sprites(candidates: tuple[str, ...], edge: int) -> np.ndarray:
    """Premultiplied sprites of the candidates, uint8 (K, edge, edge, 4)."""
    return np.stack([artwork.sprite(name, edge) for name in candidates])


class Templates:
    """K emoji of one size."""

    def __init__(self, candidates: Sequence[str], edge: int):
        """Renders the candidates.

        Args:
          candidates: names of the K emoji.
          edge: of the emoji in pixels.
        """
        sprites = _sprites(tuple(candidates), edge).reshape(len(candidates), edge * edge, 4)
        sprites = sprites / np.float32(255)
        colour_KPc, self.alpha_KP = sprites[..., :3], sprites[..., 3]
        self.edge = edge
        self.colour_norm_K = np.einsum('kpc,kpc->k', colour_KPc, colour_KPc)
        self.alpha_norm_K = np.einsum('kp,kp->k', self.alpha_KP, self.alpha_KP)
        self.cross_K3 = np.einsum('kpc,kp->kc', colour_KPc, self.alpha_KP)
        self.flat_KF = colour_KPc.reshape(len(candidates), -1)

    def compare(self, crop_NYX3: np.ndarray, colours_N3: np.ndarray) -> tuple[np.ndarray, ...]:
        """Squared distances, from 0 to 1 in each colour of each pixel.

        With b the background, a candidate is C + b (1 - a) for premultiplied colours C and
        opacity a. With Q = image - b, the distance is

            |Q - (C - b a)|^2 = |Q|^2 - 2 Q.C + 2 sum_c b_c Q_c.a
                                + |C|^2 - 2 sum_c b_c C_c.a + |b|^2 |a|^2

        where all but |Q|^2 are matrix products.

        Args:
          crop_NYX3: parts of images, Y and X the edge of the emoji, float32 up to 255.
          colours_N3: the background of each, up to 255.

        Returns:
          the distances to the candidates less that to the background, (N, K): below zero where a
          candidate is the nearer of the two; and that to the background, |Q|^2, (N,).
        """
        count = len(crop_NYX3)
        b_N3 = colours_N3.astype(np.float32) / 255
        q_NPc = crop_NYX3.reshape(count, self.edge**2, 3) / np.float32(255) - b_N3[:, None, :]
        weighted_NP = np.einsum('npc,nc->np', q_NPc, b_N3)
        q_NF = q_NPc.reshape(count, 3 * self.edge**2)
        distance_NK = (
            2 * weighted_NP @ self.alpha_KP.T
            - 2 * q_NF @ self.flat_KF.T
            - 2 * b_N3 @ self.cross_K3.T
            + (b_N3**2).sum(1)[:, None] * self.alpha_norm_K[None, :]
            + self.colour_norm_K[None, :]
        )
        return distance_NK, np.einsum('nf,nf->n', q_NF, q_NF)
