"""Samples chosen, and split into training and validation."""

import numpy as np

from sj_ottt.data.splits import choose_samples, split_samples


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
