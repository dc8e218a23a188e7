"""Data sources, indexes, captions and the grain pipeline that makes batches of them."""
