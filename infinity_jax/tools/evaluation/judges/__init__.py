"""Judges of generated images by packages and weights that the user has."""
