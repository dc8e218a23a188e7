"""Speed of models, and the limits of the device."""
