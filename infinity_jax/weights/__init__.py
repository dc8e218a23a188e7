"""Model folders: reading, writing and placing weights."""
