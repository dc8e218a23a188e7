"""The programs that draw, and what they need before they run."""
