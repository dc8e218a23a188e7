"""Flags and runners of `infinity-jax` subcommands."""
