"""Random small networks: each trains on the exact gradient, or is refused."""

from collections import Counter

import pytest

from tests.exactness.generator import outcome_of
from tests.exactness.search import describe

CHUNK, CHUNKS = 50, 10


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_random_networks_are_exact_or_refused(chunk):
    """500 networks; `python -m tests.exactness.search --networks 10000` runs more of them."""
    kinds = Counter()
    for number in range(chunk * CHUNK, (chunk + 1) * CHUNK):
        drawn, found = outcome_of(number)
        assert found.kind in ("exact", "refused"), f"{found}\n{describe(drawn)}"
        kinds[found.kind] += 1
    assert kinds["exact"] > 0.7 * CHUNK
