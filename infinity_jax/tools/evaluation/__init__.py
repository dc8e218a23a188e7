"""Measures of the quality of models."""
