"""The text-to-image task."""
