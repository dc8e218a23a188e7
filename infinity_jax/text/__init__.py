"""Prompts to token ids and text features."""
