"""Outputs of the frozen networks for every record, computed once and stored."""
