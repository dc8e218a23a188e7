"""Speed beside the limits of the device: `infinity-jax bench`."""
