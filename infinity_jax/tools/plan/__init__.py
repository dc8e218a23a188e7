"""Memory and time of a run on accelerators, estimated without them."""
