"""Every stage against reference arrays: `infinity-jax check`."""
