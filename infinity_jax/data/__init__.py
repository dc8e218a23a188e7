"""Data sources, captions, rendering and the grain pipeline."""
