"""To and from the released PyTorch files."""
