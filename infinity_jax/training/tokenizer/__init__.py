"""The tokenizer task."""
