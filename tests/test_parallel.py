"""Work on many items in several processes: in order, and ended with their parent."""

import functools
import multiprocessing
import os

import pytest

from sj_ottt import InputError
from sj_ottt._parallel import ordered_map


def _leave(item):
    os._exit(1)


def test_ordered_map():
    square = functools.partial(pow, 2)
    for workers in (None, 0, 1, 2, 5):
        found = ordered_map(square, range(30), what="squares", workers=workers)
        assert list(found) == [2**i for i in range(30)]
    assert list(ordered_map(square, [], what="nothing", workers=2)) == []
    with pytest.raises(InputError, match="workers=2: one of these processes was killed"):
        list(ordered_map(_leave, range(9), what="nothing", workers=2))
    started = ordered_map(square, range(1000), what="squares", workers=2)
    assert next(started) == 1
    started.close()
    assert not multiprocessing.active_children()
