"""Measuring, planning, checking, and the console commands."""
