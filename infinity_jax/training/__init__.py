"""Runs: configuration, step, loop, checkpoints and logs."""
