"""The training task of the tokenizer."""
