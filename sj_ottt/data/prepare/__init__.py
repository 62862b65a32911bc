"""On the way to a data set: recordings surveyed, and cut into samples."""
