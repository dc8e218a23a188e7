"""Every stage compared with reference arrays."""
