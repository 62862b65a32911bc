"""Transforms: one draw for all steps, counts that stay counts, labels that fit what is seen."""

import pytest
import torch

from sj_ottt import InputError
from sj_ottt.data import (
    Compose,
    Cutout,
    DropEvents,
    JitterTime,
    NormalizeFrames,
    RandomFlip,
    RandomRotation,
    RandomShift,
    cutmix,
)


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
    "make",
    [
        lambda: RandomShift(-1),
        lambda: RandomShift(1.5),
        lambda: NormalizeFrames(floor=0),
        lambda: NormalizeFrames(rms=float("nan")),
        lambda: DropEvents(1.0),
        lambda: DropEvents(-0.1),
        lambda: JitterTime(1.1),
        lambda: RandomFlip(2),
        lambda: RandomFlip(True),
        lambda: RandomRotation(181),
        lambda: RandomRotation(float("nan")),
    ],
)
def test_bad_transforms(make):
    with pytest.raises(InputError):
        make()


def counts(steps=5, high=9, size=(6, 7)):
    return torch.randint(0, high, (steps, 2, *size)).float()


def test_flip_is_one_draw_for_all_steps():
    torch.manual_seed(0)
    frames = counts()
    flips = [RandomFlip(0.25)(frames) for _ in range(400)]
    mirrored = sum(torch.equal(flip, frames.flip(-1)) for flip in flips)
    assert 70 < mirrored < 130
    assert all(torch.equal(f, frames) or torch.equal(f, frames.flip(-1)) for f in flips)
    assert torch.equal(RandomFlip(0)(frames), frames)


def test_rotation_turns_all_steps_by_one_angle():
    torch.manual_seed(0)
    frames = torch.zeros(4, 2, 21, 21)
    frames[..., 10, 18] = 1  # 8 pixels to the right of the middle
    grid = torch.arange(21.0)
    angles = []
    for _ in range(300):
        turned = RandomRotation(20)(frames)
        assert turned.shape == frames.shape and (turned == turned[:1, :1]).all()
        mass = turned[0, 0]
        assert mass.sum() == pytest.approx(1, abs=0.3) and mass.min() >= 0
        y, x = ((mass.sum(1 - i) * grid).sum() / mass.sum() - 10 for i in (0, 1))
        angles.append(torch.rad2deg(torch.atan2(-y, x)))
    angles = torch.stack(angles)
    assert -21 < angles.min() < -17 and 17 < angles.max() < 21 and abs(angles.mean()) < 3
    torch.testing.assert_close(RandomRotation(0)(frames), frames)


def test_dropped_events_are_whole_ones_and_the_share_is_one_for_all():
    torch.manual_seed(0)
    frames = torch.randint(0, 50, (6, 2, 30, 30)).float()
    shares = []
    for _ in range(60):
        kept = DropEvents(0.8)(frames)
        assert torch.equal(kept, kept.round()) and (kept >= 0).all() and (kept <= frames).all()
        per_frame = 1 - kept.sum((1, 2, 3)) / frames.sum((1, 2, 3))
        assert per_frame.max() - per_frame.min() < 0.03  # of one draw
        shares.append(per_frame.mean())
    shares = torch.stack(shares)
    assert shares.min() < 0.1 and 0.7 < shares.max() < 0.81 and abs(shares.mean() - 0.4) < 0.1
    assert torch.equal(DropEvents(0)(frames), frames)
    # Binomial, not a rounded product: 1,800 events of share p vary by p (1 - p).
    ones = torch.ones(1, 2, 30, 30)
    assert DropEvents(0.9)(ones).unique().tolist() == [0, 1]
    for fraction in (frames / 2, -frames):
        with pytest.raises(InputError, match="put DropEvents and JitterTime before"):
            DropEvents(0.5)(fraction)


def test_jitter_moves_events_to_the_frames_beside_theirs():
    torch.manual_seed(0)
    frames = torch.zeros(5, 2, 40, 40)
    frames[2] = 20
    moved = JitterTime(0.8)(frames)
    assert torch.equal(moved, moved.round()) and torch.equal(moved.sum(0), frames.sum(0))
    share = moved.sum((1, 2, 3)) / frames.sum()
    torch.testing.assert_close(share, torch.tensor([0, 0.2, 0.6, 0.2, 0]), atol=0.01, rtol=0)
    # What would leave the recording stays: the ends lose to one side only.
    for index, expected in ((0, [0.75, 0.25]), (1, [0.25, 0.75])):
        frames = torch.zeros(2, 2, 40, 40)
        frames[index] = 20
        moved = JitterTime(1)(frames)
        assert torch.equal(moved.sum(0), frames.sum(0))
        share = moved.sum((1, 2, 3)) / frames.sum()
        torch.testing.assert_close(share, torch.tensor(expected), atol=0.01, rtol=0)
    assert torch.equal(JitterTime(1)(frames[:1]), frames[:1])
    assert torch.equal(JitterTime(0)(frames), frames)


def test_jitter_is_that_of_single_events():
    """Against uniform moves of events at uniform times."""
    torch.manual_seed(0)
    times = torch.rand(200_000) + 1
    moved = (times + 0.6 * (2 * torch.rand(200_000) - 1)).floor()
    expected = torch.bincount(moved.long(), minlength=3)[:3] / 200_000
    frames = torch.zeros(3, 1, 1, 1)
    frames[1] = 200_000
    share = JitterTime(0.6)(frames).flatten() / 200_000
    torch.testing.assert_close(share, expected, atol=0.005, rtol=0)


def test_cutmix_exchanges_one_box_for_all_steps():
    """Each recording has its own constant, so that every value tells where it comes from."""
    torch.manual_seed(0)
    n = 5
    x_seq = torch.arange(1.0, n + 1).view(1, n, 1, 1, 1).expand(3, n, 2, 10, 12)
    target = torch.tensor([0, 1, 2, 3, 3])
    areas = []
    for _ in range(300):
        mixed, soft = cutmix(x_seq, target, 4)
        assert mixed.shape == x_seq.shape and (mixed == mixed[:1, :, :1]).all()
        foreign = mixed[0, :, 0] != x_seq[0, :, 0]
        areas.append(foreign.any(0).float().mean())
        torch.testing.assert_close(soft.sum(1), torch.ones(n))
        for i in range(n):
            own = torch.full((10, 12), i + 1.0)
            rows, columns = foreign[i].any(1), foreign[i].any(0)
            assert foreign[i].sum() == rows.sum() * columns.sum()  # a box
            expected = torch.zeros(4)
            expected[target[i]] = own[~foreign[i]].sum() / mixed[0, i, 0].sum()
            if foreign[i].any():
                (other,) = mixed[0, i, 0][foreign[i]].unique().tolist()
                expected[target[int(other) - 1]] += other * foreign[i].sum() / mixed[0, i, 0].sum()
            torch.testing.assert_close(soft[i], expected)
    areas = torch.stack(areas)
    assert areas.min() == 0 and areas.max() > 0.6 and 0.2 < areas.mean() < 0.5
    assert (x_seq == torch.arange(1.0, n + 1).view(1, n, 1, 1, 1)).all()


def test_cutmix_of_images_is_that_of_one_step():
    images, target = torch.rand(4, 1, 6, 6), torch.arange(4)
    found = []
    for x in (images, images[None]):
        torch.manual_seed(0)
        found.append(cutmix(x, target, 4))
    assert torch.equal(found[0][0], found[1][0][0]) and torch.equal(found[0][1], found[1][1])
    assert not torch.equal(found[0][0], images)


def test_cutmix_of_silence_keeps_the_label():
    torch.manual_seed(0)
    target = torch.tensor([0, 1])
    for _ in range(20):
        mixed, soft = cutmix(torch.zeros(2, 2, 2, 4, 4), target, 2)
        assert torch.equal(soft, torch.eye(2)) and mixed.sum() == 0


@pytest.mark.parametrize(
    "transform",
    [DropEvents(0.5), JitterTime(0.5), RandomFlip(0.5), RandomRotation(9), RandomShift(2)],
    ids=repr,
)
def test_draws_come_from_torchs_generator_and_leave_the_argument_alone(transform):
    frames = counts(size=(12, 12))
    before = frames.clone()
    torch.manual_seed(3)
    first = [transform(frames) for _ in range(8)]
    torch.manual_seed(3)
    again = [transform(frames) for _ in range(8)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, first[0]) for a in first)
    assert torch.equal(frames, before)


def test_flip_and_cutout_are_shared_by_all_steps():
    frames = torch.rand(3, 2, 8, 9) + 1
    torch.manual_seed(0)
    flips = [RandomFlip()(frames) for _ in range(200)]
    mirrored = sum(torch.equal(f, frames.flip(-1)) for f in flips)
    assert 70 < mirrored < 130 and sum(torch.equal(f, frames) for f in flips) == 200 - mirrored
    blanks = []
    for _ in range(200):
        blanked = Cutout(4)(frames)
        blank = (blanked == 0).all(dim=(0, 1))
        assert torch.equal(torch.where(blank, 0, frames), blanked)
        blanks.append(int(blank.sum()))
    assert max(blanks) == 16 and min(blanks) == 4  # a corner keeps a quarter
    assert frames.min() >= 1 and torch.equal(Cutout(0)(frames), frames)
