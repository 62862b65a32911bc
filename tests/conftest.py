"""What all tests share: real recordings where they are, and a cache that is not the user's."""

import os
from pathlib import Path

import pytest
import torch

# The models know weights of the user's from the moment that the package is imported.
os.environ["SJ_OTTT_ZOO"] = os.path.join(os.devnull, "zoo")  # nobody can make it

SHARED = Path(os.environ.get("SJ_OTTT_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """One cache for the session, so that `ndigits` is recorded once."""
    folder = tmp_path_factory.mktemp("cache")
    before = os.environ.get("SJ_OTTT_CACHE")
    os.environ["SJ_OTTT_CACHE"] = str(folder)
    yield folder
    os.environ.pop("SJ_OTTT_CACHE")
    if before is not None:
        os.environ["SJ_OTTT_CACHE"] = before


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Tiny convolutions lose seconds to waiting threads where other processes want the cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def nmnist() -> Path:
    """Real event-camera recordings (N-MNIST, a part of it)."""
    folder = SHARED / "nmnist_small"
    if not folder.is_dir():
        pytest.skip(
            f"{folder} is missing: point SJ_OTTT_SHARED_DATA to a folder with nmnist_small/"
        )
    return folder


@pytest.fixture(scope="session")
def camera_files() -> Path:
    """Files as cameras and tools really write them."""
    folder = SHARED / "camera_files"
    if not folder.is_dir():
        pytest.skip(
            f"{folder} is missing: point SJ_OTTT_SHARED_DATA to a folder with camera_files/"
        )
    return folder
