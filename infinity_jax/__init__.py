"""Infinity in JAX: bitwise autoregressive text-to-image generation (arXiv 2412.04431)."""
