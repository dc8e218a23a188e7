"""Scores of judges as tables, next to published figures."""
