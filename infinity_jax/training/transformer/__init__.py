"""The training task of the text-to-image transformer."""
