"""Pure functions, every formula once and its plain reference beside the fast version.

Here too are the types that the rooms above exchange: traces, pairs and rules.
"""
