"""Speed beside the limits of the device."""
