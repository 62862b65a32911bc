"""Frames: each event in exactly one, edges that can be said in a sentence."""

import numpy as np
import pytest
import torch

from sj_ottt import InputError
from sj_ottt.data import EVENT_DTYPE, Compose, NormalizeFrames, RandomShift, events_to_frames


def recording(n=1000, size=(9, 7), seed=0, duration=100_000):
    rng = np.random.default_rng(seed)
    table = np.empty(n, EVENT_DTYPE)
    table["t"] = np.sort(rng.integers(0, duration, n))
    table["y"], table["x"] = rng.integers(0, size[0], n), rng.integers(0, size[1], n)
    table["p"] = rng.integers(0, 2, n)
    return table


def slowly(table, steps, size, out, split_by):
    """The obvious loop."""
    frames = np.zeros((steps, 2, *out), int)
    n, t0, t1 = len(table), int(table["t"][0]), int(table["t"][-1])
    for i, (t, x, y, p) in enumerate(table.tolist()):
        if split_by == "count":
            step = next(s for s in range(steps) if i < (s + 1) * n // steps)
        else:
            step = steps - 1
            while step and t < t0 + step * (t1 - t0) // steps:
                step -= 1
        frames[step, p, y * out[0] // size[0], x * out[1] // size[1]] += 1
    return frames


@pytest.mark.parametrize("split_by", ["count", "duration"])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 16])
@pytest.mark.parametrize("out", [None, (4, 5), (20, 20)])
def test_against_the_obvious_loop(split_by, steps, out):
    table = recording(211)
    frames = events_to_frames(table, steps, (9, 7), out, split_by)
    assert np.array_equal(frames, slowly(table, steps, (9, 7), out or (9, 7), split_by))
    assert frames.sum() == 211


def test_no_frame_is_empty_by_rounding():
    for n in range(1, 60):
        table = recording(n)
        for steps in range(1, n + 1):
            per_frame = events_to_frames(table, steps, (9, 7)).sum((1, 2, 3))
            assert per_frame.min() >= 1 and per_frame.max() - per_frame.min() <= 1


def test_duration_edges():
    """Edges at whole µs; an event on an edge opens the next frame, the last event ends the last."""
    table = recording(5)
    table["t"] = [100, 149, 150, 199, 200]
    per_frame = events_to_frames(table, 2, (9, 7), split_by="duration").sum((1, 2, 3))
    assert per_frame.tolist() == [2, 3]
    table["t"] = 42
    assert events_to_frames(table, 3, (9, 7), split_by="duration").sum() == 5


def test_equals_spikingjellys_integration_where_it_is_right():
    """SpikingJelly puts the remainder of n / T into the last frame, so compare without one."""
    sj_utils = pytest.importorskip("spikingjelly.datasets.utils", exc_type=Exception)
    integrate = getattr(sj_utils, "integrate_events_by_fixed_frames_number", None)
    if integrate is None:
        pytest.skip("this SpikingJelly has no integration under the known name")
    table = recording(400)
    theirs = integrate({k: table[k] for k in "txyp"}, "number", 8, 9, 7)
    assert np.array_equal(events_to_frames(table, 8, (9, 7)), theirs)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((0, (9, 7)), "steps=0"),
        ((2.5, (9, 7)), "steps=2.5"),
        ((True, (9, 7)), "steps=True"),
        ((2, (9,)), "sensor_size"),
        ((2, (9, 7), (0, 4)), "size="),
        ((2, (9, 7), None, "time"), "split_by='time'"),
        ((2, (8, 7)), "outside the sensor"),
        ((2000, (9, 7)), "1000 events cannot fill 2000 frames"),
    ],
)
def test_bad_arguments(args, words):
    with pytest.raises(InputError, match=words):
        events_to_frames(recording(), *args)


def test_random_shift_is_one_draw_for_all_steps():
    torch.manual_seed(0)
    frames = torch.zeros(4, 2, 11, 11)
    frames[:, :, 5, 5] = 1
    seen = set()
    for _ in range(200):
        where = RandomShift(2)(frames).nonzero()[:, 2:]
        assert (where == where[0]).all() and len(where) == 8
        seen.add(tuple(where[0].tolist()))
    assert seen == {(y, x) for y in range(3, 8) for x in range(3, 8)}
    corner = torch.ones(1, 1, 3, 3)
    assert {RandomShift(1)(corner).sum().item() for _ in range(50)} == {4, 6, 9}
    assert torch.equal(RandomShift(0)(frames), frames)
    RandomShift(20)(frames)  # further than the frame is wide: nothing left, no error


def test_normalize_frames():
    torch.manual_seed(0)
    frames = torch.rand(5, 2, 6, 6) * torch.arange(1, 6).view(5, 1, 1, 1)
    frames[2] = 0
    scaled = NormalizeFrames(rms=3.0)(frames)
    rms = scaled.square().mean((1, 2, 3)).sqrt()
    torch.testing.assert_close(rms, torch.tensor([3.0, 3.0, 0.0, 3.0, 3.0]))
    faint = torch.zeros(1, 2, 50, 50)
    faint[0, 0, 0, 0] = 1  # RMS 0.014, below the floor: scaled as if it were 0.1
    assert NormalizeFrames(rms=2.0, floor=0.1)(faint).max() == pytest.approx(20)
    alone = torch.cat([NormalizeFrames()(frame[None]) for frame in frames])
    torch.testing.assert_close(alone, NormalizeFrames()(frames))  # causal: frame by frame
    assert repr(Compose([RandomShift(1), NormalizeFrames()]))


@pytest.mark.parametrize(
    "make", [lambda: RandomShift(-1), lambda: RandomShift(1.5), lambda: NormalizeFrames(floor=0),
             lambda: NormalizeFrames(rms=float("nan"))],
)  # fmt: skip
def test_bad_transforms(make):
    with pytest.raises(InputError):
        make()
