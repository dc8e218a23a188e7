"""Features and captions computed once and stored."""
