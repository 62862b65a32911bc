"""Long recordings that several test files of this folder share."""

import pytest

from tests.data.long_recordings import record


@pytest.fixture
def raw(tmp_path):
    """Two sessions of three recordings of 4 s each."""
    for session in ("monday", "tuesday"):
        for i in range(3):
            record(tmp_path / "raw" / session / f"{i}.npz", 4, seed=i)
    return tmp_path / "raw"
