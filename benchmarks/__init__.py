"""Side-by-side measurements: see `python -m benchmarks --help`."""

import time

BEGUN = time.perf_counter()
"""When the program began, before it has imported what takes long."""
