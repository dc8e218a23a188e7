"""Experiments: the points of a config file, each trained with several seeds, and their report."""
