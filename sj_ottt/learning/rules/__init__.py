"""Learning rules: which gradient a network learns by."""
