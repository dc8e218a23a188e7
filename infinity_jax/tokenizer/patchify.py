"""Spatial patchify of the 8B model: 2×2 codes of d channels fold into one token of 4d."""

import jax
from einops import rearrange


def fold(x_Bhwd: jax.Array) -> jax.Array:
    """(B, 2h, 2w, d) to (B, h, w, 4d); the channel order is c·4 + 2·dy + dx."""
    return rearrange(x_Bhwd, 'b (h dy) (w dx) c -> b h w (c dy dx)', dy=2, dx=2)


def unfold(x_Bhwd: jax.Array) -> jax.Array:
    """The inverse of `fold`: (B, h, w, 4d) to (B, 2h, 2w, d)."""
    return rearrange(x_Bhwd, 'b h w (c dy dx) -> b (h dy) (w dx) c', dy=2, dx=2)
