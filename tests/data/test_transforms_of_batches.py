"""Transforms of a whole batch do what the transforms of its samples do."""

import pytest
import torch
from torchvision.transforms import InterpolationMode, Normalize
from torchvision.transforms.functional import rotate

from sj_ottt import InputError
from sj_ottt.data import (
    Cutout,
    DropEvents,
    JitterTime,
    NormalizeFrames,
    RandomFlip,
    RandomRotation,
    RandomShift,
)
from sj_ottt.data.transforms import apply_to_batch

ALL = [
    DropEvents(0.5),
    JitterTime(0.5),
    RandomFlip(0.5),
    RandomRotation(30),
    RandomShift(3),
    Cutout(4),
]


def counts(steps=3, n=4, size=(9, 12), high=9):
    return torch.randint(0, high, (steps, n, 2, *size)).float()


@pytest.mark.parametrize("transform", ALL[2:], ids=repr)
def test_a_batch_of_one_is_the_sample(transform):
    """Drawn alike, and done alike, on frames that are not square."""
    torch.manual_seed(0)
    results = set()
    for seed in range(30):
        frames = counts(n=1)
        torch.manual_seed(seed)
        alone = transform(frames[:, 0])
        torch.manual_seed(seed)
        batch = transform.on_batch(frames)
        torch.testing.assert_close(batch[:, 0], alone, atol=1e-3, rtol=1e-4)
        results.add(torch.equal(batch, frames))
    assert False in results


def test_each_sample_has_its_own_draw():
    one = counts(n=1, high=50)
    x_seq = one.expand(-1, 8, -1, -1, -1)
    for transform in ALL:
        torch.manual_seed(1)
        done = transform.on_batch(x_seq)
        assert done.shape == x_seq.shape
        different = {tuple(done[:, i].flatten().tolist()) for i in range(8)}
        assert len(different) >= (2 if isinstance(transform, RandomFlip) else 5), transform
    torch.manual_seed(2)
    turned = RandomRotation(30).on_batch(x_seq)
    torch.manual_seed(2)
    for i, angle in enumerate((30 * (2 * torch.rand(8) - 1)).tolist()):
        frames = rotate(one[:, 0].flatten(0, 1)[None], angle, InterpolationMode.BILINEAR)
        torch.testing.assert_close(turned[:, i].flatten(0, 1)[None], frames, atol=1e-3, rtol=1e-4)
    torch.manual_seed(3)
    moved = RandomShift(2).on_batch(x_seq)
    torch.manual_seed(3)
    for i, (dy, dx) in enumerate(torch.randint(-2, 3, (2, 8)).T.tolist()):
        expected = one[:, 0].roll((dy, dx), (-2, -1))
        rows, columns = torch.arange(9) - dy, torch.arange(12) - dx
        outside = ((rows < 0) | (rows >= 9))[:, None] | ((columns < 0) | (columns >= 12))
        assert torch.equal(moved[:, i], expected.masked_fill(outside, 0))


def test_dropped_events_are_whole_ones_and_the_share_is_that_of_a_sample():
    torch.manual_seed(0)
    x_seq = counts(steps=6, n=60, size=(30, 30), high=50)
    kept = DropEvents(0.8).on_batch(x_seq)
    assert torch.equal(kept, kept.round()) and (kept >= 0).all() and (kept <= x_seq).all()
    share = 1 - kept.sum((2, 3, 4)) / x_seq.sum((2, 3, 4))
    assert (share.amax(0) - share.amin(0)).max() < 0.03
    means = share.mean(0)
    assert means.min() < 0.1 and 0.7 < means.max() < 0.81
    few = torch.full((1, 4000, 1, 8, 8), 20.0)
    shares = 1 - DropEvents(0.8).on_batch(few).mean((0, 2, 3, 4)) / 20
    assert abs(shares.mean() - 0.4) < 0.012 and abs(shares.std() - 0.8 / 12**0.5) < 0.01
    # Each event by itself: ones become 0 or 1.
    assert DropEvents(0.9).on_batch(torch.ones(1, 2, 2, 30, 30)).unique().tolist() == [0, 1]


@pytest.mark.parametrize(
    ("jitter", "first", "expected"),
    [
        (0.8, 2, [0, 0.2, 0.6, 0.2, 0]),
        (1, 0, [0.75, 0.25, 0, 0, 0]),
        (1, 4, [0, 0, 0, 0.25, 0.75]),
    ],
)
def test_jitter_moves_as_many_events_as_that_of_samples(jitter, first, expected):
    """Those that would leave the recording stay, and none is lost."""
    torch.manual_seed(0)
    x_seq = torch.zeros(5, 3, 2, 40, 40)
    x_seq[first] = 20
    moved = JitterTime(jitter).on_batch(x_seq)
    assert torch.equal(moved, moved.round()) and moved.min() >= 0
    assert torch.equal(moved.sum(0), x_seq.sum(0))
    share = moved.sum((2, 3, 4)) / x_seq.sum((0, 2, 3, 4))
    torch.testing.assert_close(
        share, torch.tensor(expected)[:, None].expand(5, 3), atol=0.01, rtol=0
    )
    samples = torch.stack([JitterTime(jitter)(x_seq[:, i]) for i in range(3)], 1)
    torch.testing.assert_close(moved.var((2, 3, 4)), samples.var((2, 3, 4)), atol=0.5, rtol=0.1)
    assert torch.equal(JitterTime(1).on_batch(x_seq[:1]), x_seq[:1])


def test_a_chain_leaves_the_argument_alone_and_draws_from_torchs_generator():
    x_seq = counts()
    before = x_seq.clone()
    chain = [*ALL[:-1], NormalizeFrames(), ALL[-1]]
    results = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        results.append(apply_to_batch(chain, x_seq))
    assert torch.equal(x_seq, before) and results[0].isfinite().all() and results[0].norm() > 0
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])
    assert all(done.is_contiguous() for done in (*results, apply_to_batch(ALL[3:4], x_seq)))
    assert apply_to_batch([], x_seq) is x_seq


DTYPES = [torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("transform", ALL, ids=repr)
def test_counts_of_any_dtype(transform, dtype):
    """Half precision too, in which PyTorch's own rotation on a CPU is not finite."""
    x_seq = counts(n=2, size=(64, 96))
    torch.manual_seed(4)
    expected = transform.on_batch(x_seq)
    torch.manual_seed(4)
    found = transform.on_batch(x_seq.to(dtype))
    assert found.dtype == dtype
    drawn = (DropEvents, JitterTime) if dtype == torch.float64 else ()  # another stream of numbers
    if not isinstance(transform, drawn):
        error = 0.51 if not dtype.is_floating_point else 0.05
        torch.testing.assert_close(found.float(), expected, atol=error, rtol=0)
    if isinstance(transform, RandomRotation):
        torch.manual_seed(4)
        alone = transform(x_seq[:, 0])
        torch.manual_seed(4)
        sample = transform(x_seq[:, 0].to(dtype))
        assert sample.dtype == dtype
        torch.testing.assert_close(sample.float(), alone, atol=0.51, rtol=0)


def test_no_gradient_goes_through_what_is_drawn():
    x_seq = counts().requires_grad_()
    for transform in ALL[:2]:
        assert not transform.on_batch(x_seq).requires_grad


def test_a_shift_further_than_the_frame_is_wide_takes_no_more_memory():
    x_seq = counts(n=6) + 1
    torch.manual_seed(0)
    moved = RandomShift(10**9).on_batch(x_seq)  # padded by it, no memory would do
    assert moved.shape == x_seq.shape and not moved.any()
    moved = RandomShift(12).on_batch(counts(n=200) + 1)
    kept = moved.amax((0, 2, 3, 4)) > 0
    assert kept.any() and not kept.all()


def test_sequences_without_frames_are_refused():
    """A row a step, say: [T, N, values] is no batch of images."""
    with pytest.raises(InputError, match=r"batch \[5, 4, 28\]: give sequences \[T, N, C, H, W\]"):
        apply_to_batch([DropEvents(0.5)], torch.ones(5, 4, 28))


def test_of_images_and_of_no_samples():
    images = torch.rand(5, 3, 9, 12)
    chain = [RandomFlip(1.0), Normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)), Cutout(0)]
    done = apply_to_batch(chain, images)
    expected = torch.stack([chain[1](image.flip(-1)) for image in images])
    torch.testing.assert_close(done, expected)
    assert apply_to_batch(ALL, counts(n=0)).shape == (3, 0, 2, 9, 12)


@pytest.mark.parametrize("transform", ALL[:2], ids=repr)
def test_refuses_what_are_no_counts(transform):
    for values in (counts() / 2, -counts() - 1):
        with pytest.raises(InputError, match="put DropEvents and JitterTime before"):
            transform.on_batch(values)
