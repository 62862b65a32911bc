"""Pure functions: every formula once, its plain reference beside the fast version."""
