"""One file per kind of stored data."""
