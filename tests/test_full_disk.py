"""A full disk at some of the writes of each command; ``python -m tests.full_disk``: at all."""

import errno
import os
import random

import pytest

from tests.full_disk import Disk, Table, try_at

pytestmark = pytest.mark.slow
TRIED = {"train": 4, "resume": 3, "export": 2, "slice": 3, "info": 2, "view": 1, "adapt": 2}
TRIED |= {"analyze": 2}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    before = os.environ["SJ_OTTT_CACHE"]
    yield Table(tmp_path_factory.mktemp("disk"))
    os.environ["SJ_OTTT_CACHE"] = before


@pytest.mark.parametrize("name", TRIED)
def test_a_full_disk_ends_in_one_line_and_loses_nothing(table, name):
    assert try_at(table, name, 10_000)  # with space
    for full_at in random.sample(range(1, 60), TRIED[name]):
        try_at(table, name, full_at)
    assert not try_at(table, name, 1)


def test_what_counts_as_a_write(tmp_path):
    disk = Disk(tmp_path, 3)
    with disk.watched():
        (tmp_path / "a").write_text("a")
        with pytest.raises(OSError) as full:
            os.replace(tmp_path / "a", tmp_path / "b")
        assert full.value.errno == errno.ENOSPC and disk.writes == 3
        assert (tmp_path / "a").read_text() == "a"
    os.replace(tmp_path / "a", tmp_path / "b")
