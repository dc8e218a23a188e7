"""Recognition of images by a network that others trained."""
