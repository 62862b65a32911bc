"""Training runs: what decides them, what they leave on the disk, what they have learned."""
