"""A simulated event camera, and data sets recorded by it."""
