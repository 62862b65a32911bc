"""Samples chosen, and split into training, validation and test."""

import numpy as np
import pytest

from sj_ottt import InputError
from sj_ottt.data.recordings.windows import Window
from sj_ottt.data.splits import (
    choose_samples,
    split_by_group,
    split_by_time,
    split_for_validation,
    split_samples,
)
from tests.helpers import overlap


def test_train_samples_are_balanced_and_nested():
    targets = np.repeat([0, 1, 2], [50, 30, 5])
    few, more = (choose_samples(targets, n, seed=3) for n in (9, 30))
    assert np.bincount(targets[few]).tolist() == [3, 3, 3] and set(few) < set(more)
    assert np.bincount(targets[more]).tolist() == [13, 12, 5]
    assert np.array_equal(choose_samples(targets, None, 3), np.arange(85))
    assert len(choose_samples(targets, 1000, 3)) == 85
    assert not np.array_equal(choose_samples(targets, 9, seed=4), few)


def test_split_keeps_each_class_and_loses_nothing():
    targets = np.repeat([0, 1, 2, 3], [50, 10, 2, 1])
    train_part, val_part = split_samples(targets, 0.1, seed=3)
    assert sorted([*train_part, *val_part]) == list(range(63))
    assert np.bincount(targets[val_part], minlength=4).tolist() == [5, 1, 1, 0]
    again = split_samples(targets, 0.1, seed=3)
    other = split_samples(targets, 0.1, seed=4)
    assert np.array_equal(val_part, again[1]) and not np.array_equal(val_part, other[1])


def test_split_by_time_by_hand():
    windows = [Window("a", "s", "c", start, 200, 9) for start in (300, 0, 100, 200, 400)]
    # Tests begin at 400: 300 and, by its end alone, not 200 overlap it.
    assert split_by_time(windows, 0.2).tolist() == [-1, 0, 0, 0, 1]
    assert split_by_time(windows[:1], 0.2).tolist() == [0]
    assert split_by_time(windows[1:3], 0.5).tolist() == [0, 0]  # they overlap: nothing to test


def test_split_by_group_is_balanced_drawn_and_spares_classes():
    windows = [
        Window(f"{c}{i}", "s", c, k, 1, 9) for c in "ab" for i in range(20) for k in range(5)
    ]
    groups = [window.recording for window in windows]
    first = split_by_group(windows, groups, 0.2, seed=0)
    for label in "ab":
        assert sum(p for w, p in zip(windows, first, strict=True) if w.label == label) == 20
    assert (first != split_by_group(windows, groups, 0.2, seed=1)).any()
    # Two groups a class: the smaller one is tested on, though it is more than the wanted share.
    few = [Window("big", "s", "a", k, 1, 9) for k in range(5)]
    few += [Window("small", "s", "a", k, 1, 9) for k in range(3)]
    part = split_by_group(few, [w.recording for w in few], 0.2, seed=0)
    assert part.tolist() == [0] * 5 + [1] * 3
    # However much is wanted, something is left to train with.
    assert sum(split_by_group(few, [w.recording for w in few], 0.95, seed=0)) in (3, 5)
    with pytest.raises(InputError, match="class 'a' occurs in a single recording or session"):
        split_by_group(few[:5], ["big"] * 5, 0.2, seed=0)


@pytest.mark.parametrize(("n_recordings", "whole"), [(6, True), (3, False)])
def test_validation_shares_no_event_with_training(n_recordings, whole):
    windows = [
        Window(f"r{r}", "s", label, start, 200, 9)
        for r in range(n_recordings)
        for label, begin in (("a", 0), ("b", 5000))
        for start in range(begin, begin + 3000, 100)
    ]
    part = split_for_validation(windows, 0.1, seed=0)
    train, val = ([w for w, p in zip(windows, part, strict=True) if p == i] for i in (0, 1))
    assert {w.label for w in train} == {w.label for w in val} == {"a", "b"}
    assert not any(overlap(a, b) for a in train for b in val)
    shared = {w.recording for w in train} & {w.recording for w in val}
    assert shared == (set() if whole else {w.recording for w in windows})
    assert len(val) < len(windows) / 4
