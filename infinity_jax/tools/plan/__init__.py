"""What a run would take on accelerators that one need not own."""
