"""The embedded emoji: a small data set with exact truth, and its judge."""
