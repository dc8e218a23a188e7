"""The subcommands of `infinity-jax`: flags, and what they call."""
