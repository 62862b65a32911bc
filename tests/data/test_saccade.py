"""Saccades: closed forms, independence of samples, repeatability, and the simulated camera."""

import math

import numpy as np
import pytest
import torch

from sj_ottt import InputError
from sj_ottt.data import ImageSet, ImageStats, Saccade, video_events
from sj_ottt.data.saccade import _levels, _path, _views
from sj_ottt.data.simulate.camera import _sampling
from tests.conftest import SHARED

QUIET = {"flip": 0, "thin": 0, "noise": 0, "shift": 0, "turn": 0, "zoom": (1, 1)}
"""What leaves an image as it is, so that a test can say where its events must be."""


def fixed(saccade: Saccade, n: int = 1, **values: float | list[float]):
    """Draws of a saccade with some of them given, the gaze starting in the middle."""
    draws = saccade.draw(n)
    values = {"start": [0.0, 0.0], **values}
    given = {k: torch.tensor(v, dtype=getattr(draws, k).dtype) for k, v in values.items()}
    return draws._replace(**{k: v.expand_as(getattr(draws, k)) for k, v in given.items()})


def step_edge(dark: float = 0.2, bright: float = 0.8, size: int = 16) -> torch.Tensor:
    image = torch.full((1, size, size), dark)
    image[..., size // 2 :] = bright
    return image


def shapes(n: int, size: int = 32, channels: int = 1) -> torch.Tensor:
    """Smooth blobs on black, textured, [n, C, size, size]: like photographs of things."""
    rng = torch.Generator().manual_seed(3)
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, size)] * 2, indexing="ij")
    images = torch.rand(n, channels, size // 4, size // 4, generator=rng)
    images = torch.nn.functional.interpolate(images, (size, size), mode="bilinear")
    wide, high = (0.4 + 0.4 * torch.rand(2, n, 1, 1, 1, generator=rng)).unbind()
    return images * (x.abs() < wide) * (y.abs() < high)


@pytest.mark.parametrize("speed", [1, 2, 3])
def test_a_step_edge_emits_what_the_formula_says(speed):
    """The gaze moves right, so the bright side comes in: ON where the edge passes, and no OFF."""
    threshold, eps = 0.125, 0.1
    saccade = Saccade(
        2, **QUIET, speed=(speed, speed), threshold=(threshold, threshold), travel=0.5, eps=eps,
        max_count=(99, 99),
    )  # fmt: skip
    frames = saccade(step_edge(), fixed(saccade, direction=0.0))
    height = math.floor((math.log(0.8 + eps) - math.log(0.2 + eps)) / threshold)
    expected = torch.zeros(2, 2, 16, 16)
    for t in range(2):
        edge = 8 - speed * t
        expected[t, 1, :, edge - speed : edge] = height
    torch.testing.assert_close(frames, expected, rtol=0, atol=0)


def test_the_other_direction_and_the_other_edge_change_the_polarity():
    saccade = Saccade(1, **QUIET, max_count=(99, 99))
    to_right = saccade(step_edge(), fixed(saccade, direction=0.0, speed=2.0))
    to_left = saccade(step_edge(), fixed(saccade, direction=math.pi, speed=2.0))
    falling = saccade(step_edge(0.8, 0.2), fixed(saccade, direction=0.0, speed=2.0))
    assert to_right[:, 1].any() and not to_right[:, 0].any()
    assert to_left[:, 0].any() and not to_left[:, 1].any()
    assert falling[:, 0].any() and not falling[:, 1].any()
    along = saccade(step_edge(), fixed(saccade, direction=math.pi / 2, speed=2.0))
    assert not along.any()  # the gaze moves along the edge


def test_what_is_left_below_the_threshold_counts_later():
    """A slope of 0.45 thresholds a pixel: no event in the first steps, two after five."""
    saccade = Saccade(
        5, **QUIET, speed=(1, 1), threshold=(0.1, 0.1), travel=0.5, eps=0.01
    )  # fmt: skip
    slope = torch.exp(0.045 * torch.arange(64) - 3).clamp(max=1) - 0.01
    frames = saccade(slope.clamp(min=0).expand(1, 64, 64), fixed(saccade, direction=0.0))
    assert frames[:, 1, 32, 16:48].mean(1).tolist() == [0, 0, 1, 0, 1] and not frames[:, 0].any()


def test_borders_of_a_bright_image_are_no_edges():
    saccade = Saccade(6, zoom=(0.5, 0.8), shift=0.3, thin=0, noise=0)
    assert not saccade(torch.full((32, 3, 20, 24), 0.9)).any()
    assert saccade(shapes(32)).any()


def test_samples_are_independent_of_their_batch():
    torch.manual_seed(0)
    saccade = Saccade(3, noise=0, thin=0)
    images = shapes(6, channels=3)
    draws = saccade.draw(6)
    together = saccade(images, draws)
    for i, image in enumerate(images):
        alone = saccade(image, type(draws)(*(d[i : i + 1] for d in draws)))
        torch.testing.assert_close(together[:, i], alone, rtol=0, atol=0)
    assert len({tuple(frame.flatten().tolist()) for frame in together.unbind(1)}) == 6


@pytest.mark.parametrize("turn", [0, 180])
def test_the_gaze_moves_as_fast_as_it_is_drawn_within_its_reach(turn):
    torch.manual_seed(0)
    saccade = Saccade(10, turn=turn)
    draws = saccade.draw(500)._replace(start=torch.zeros(500, 2))
    path = _path(draws, 10, 4, 1000)
    steps = path.diff(dim=0).abs()
    torch.testing.assert_close(steps.amax(-1) * 4, draws.speed.expand(40, -1), atol=1e-3, rtol=0)
    assert draws.speed.min() < 1.1 and draws.speed.max() > 3.9
    near = _path(draws, 10, 4, 3)
    assert near.abs().max() <= 3 and near.abs().max() > 2.9
    assert (near.diff(dim=0).abs() <= steps + 1e-3).all()


def test_samples_of_one_image_differ():
    torch.manual_seed(0)
    frames = Saccade(2)(shapes(1).expand(8, -1, -1, -1))
    assert len({tuple(sample.flatten().tolist()) for sample in frames.unbind(1)}) == 8


def test_flip_is_known_and_can_be_given():
    torch.manual_seed(0)
    saccade = Saccade(2, noise=0, thin=0, shift=0)
    draws = fixed(saccade, 40)
    assert 8 < draws.flip.sum() < 32
    images = shapes(40)
    off = torch.zeros(40, dtype=torch.bool)
    flipped = torch.where(draws.flip[:, None, None, None], images.flip(-1), images)
    torch.testing.assert_close(
        saccade(images, draws), saccade(flipped, draws._replace(flip=off)), rtol=0, atol=0
    )
    assert not torch.equal(saccade(images, draws), saccade(images, draws._replace(flip=off)))


def test_generators_repeat_the_draws():
    images, saccade = shapes(4), Saccade(2)
    first, second = (saccade(images, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, second)
    torch.manual_seed(5)
    assert torch.equal(saccade(images), first)
    assert not torch.equal(saccade(images), first)
    alone = [saccade(images[0], generator=torch.Generator().manual_seed(5)) for _ in range(2)]
    assert torch.equal(*alone)


def test_without_random_nothing_is_drawn():
    saccade, images = Saccade(4, random=False), shapes(3)
    state = torch.get_rng_state()
    frames = saccade(images)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(frames, saccade(images))
    torch.testing.assert_close(frames[:, 1], saccade(images[1]), rtol=0, atol=0)
    assert frames.sum((2, 3, 4)).all()
    draws = saccade.draw(1)
    assert draws.threshold.item() == pytest.approx(0.16) and draws.zoom.item() == pytest.approx(1)
    assert draws.direction.item() == pytest.approx(math.pi / 4)
    assert draws.turn.item() == pytest.approx(math.radians(30))
    assert not torch.stack([draws.thin, draws.noise, draws.flip]).any()
    assert not draws.start.any() and not draws.shift.any()


def test_events_are_lost_at_the_stated_share():
    torch.manual_seed(0)
    saccade = Saccade(4, **{**QUIET, "thin": 0.75})
    images = shapes(200)
    draws = saccade.draw(200)
    assert draws.thin.min() < 0.05 and 0.7 < draws.thin.max() <= 0.75
    whole = saccade(images, draws._replace(thin=torch.zeros(200)))
    thinned = saccade(images, draws._replace(thin=torch.full((200,), 0.25)))
    assert (thinned <= whole).all() and torch.equal(thinned, thinned.floor())
    assert (thinned.sum() / whole.sum()).item() == pytest.approx(0.75, abs=0.01)
    single = whole == 1
    assert thinned[single].mean().item() == pytest.approx(0.75, abs=0.02)
    gone = saccade(images, draws._replace(thin=(torch.arange(200) % 2).float()))
    assert torch.equal(gone[:, ::2], whole[:, ::2]) and not gone[:, 1::2].any()


def test_noise_has_the_stated_rate():
    torch.manual_seed(0)
    saccade = Saccade(3, noise=0.1)
    black = torch.zeros(400, 1, 16, 20)
    rates = saccade(black).mean((0, 2, 3, 4))
    assert rates.mean().item() == pytest.approx(0.05, abs=0.004)
    assert rates.min() < 0.01 and 0.09 < rates.max() <= 0.101
    draws = saccade.draw(400)
    some = saccade(black, draws._replace(noise=torch.full((400,), 0.02)))
    assert some.mean((1, 3, 4)).allclose(torch.tensor(0.02), atol=0.002)  # frames, polarities
    assert some.sum((0, 1, 2)).min() > 0  # every pixel
    many = torch.zeros(3000, 1, 16, 20)
    few = saccade(many, saccade.draw(3000)._replace(noise=torch.full((3000,), 1e-4)))
    assert few.mean().item() == pytest.approx(1e-4, rel=0.15)  # 0.2 events a sample


def test_counts_are_limited():
    torch.manual_seed(0)
    saccade = Saccade(2, max_count=(2, 5), noise=0)
    draws = saccade.draw(64)
    assert set(draws.max_count.tolist()) == {2, 3, 4, 5}
    frames = saccade((shapes(64) > 0.3).float(), draws._replace(thin=torch.zeros(64)))
    assert torch.equal(frames.amax((0, 2, 3, 4)), draws.max_count)


@pytest.mark.parametrize("steps", [1, 4, 10])
@pytest.mark.parametrize("size", [(2, 2), (7, 9), (28, 28), (65, 33)])
def test_sizes_and_steps(steps, size):
    torch.manual_seed(0)
    for dtype in (torch.float16, torch.float32, torch.float64):
        frames = Saccade(steps, noise=0)(torch.rand(20, 3, *size).to(dtype))
        assert frames.shape == (steps, 20, 2, *size) and frames.dtype is torch.float32
        assert frames.isfinite().all() and frames.min() == 0
        assert frames.sum((1, 2, 3, 4)).all()  # every frame shows something
    assert Saccade(steps)(torch.rand(0, 1, *size)).shape == (steps, 0, 2, *size)


def test_values_a_little_out_of_range_are_black_and_white():
    saccade, images = Saccade(2, random=False, eps=1e-6), shapes(3)
    frames = saccade(images - 5e-4 * (images == 0))
    assert torch.equal(frames, saccade(images)) and frames.any()
    assert not saccade(images.requires_grad_()).requires_grad


def test_colour_counts_by_its_luminance():
    saccade = Saccade(2, random=False)
    colour = shapes(4, channels=3)
    grey = (colour * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    torch.testing.assert_close(saccade(colour), saccade(grey), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 0}, "steps=0: give a whole number of frames, 1 or more"),
        ({"steps": True}, "steps=True"),
        ({"steps": 2.0}, "steps=2.0"),
        ({"speed": (0.5, 2)}, r"speed=\(0.5, 2\): give \(low, high\)"),
        ({"speed": (3, 2)}, "speed"),
        ({"speed": 3}, "speed=3"),
        ({"threshold": (0, 1)}, "threshold"),
        ({"zoom": (float("nan"), 1)}, "zoom"),
        ({"max_count": (0, 3)}, "max_count"),
        ({"max_count": (3, 4.5)}, "two whole numbers"),
        ({"thin": 1.5}, "thin=1.5: give a number from 0 to 1"),
        ({"noise": -0.1}, "noise"),
        ({"travel": 0.6}, "travel"),
        ({"shift": float("nan")}, "shift"),
        ({"flip": True}, "flip"),
        ({"eps": 0}, "eps"),
        ({"turn": 181}, "turn"),
    ],
)
def test_wrong_arguments_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        Saccade(**{"steps": 2, **options})


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.rand(1, 1, 1), "1 x 1 pixels have no edges"),
        (torch.rand(4, 1, 1, 8), "1 x 8 pixels have no edges"),
        (torch.rand(2, 2, 8, 8), "1 channel or 3"),
        (torch.rand(8, 8), "shape"),
        (torch.randint(256, (1, 8, 8), dtype=torch.uint8), "uint8"),
        (torch.randn(1, 8, 8), r"values from -.* give intensities in \[0, 1\]"),
        (torch.full((1, 8, 8), float("nan")), "values from nan"),
    ],
)
def test_wrong_images_are_refused(images, words):
    with pytest.raises(InputError, match=words):
        Saccade(2)(images)


def test_draws_of_another_number_of_samples_are_refused():
    saccade = Saccade(2)
    with pytest.raises(InputError, match="draws: of 3 samples for 4 images"):
        saccade(shapes(4), saccade.draw(3))


def test_repr_names_the_options():
    assert repr(Saccade(2)).startswith("Saccade(steps=2, random=True, speed=(1.0, 4.0)")


# Against the simulated camera, which follows the path in time


def recorded(saccade, draws, video):
    """Frames [T, 2, H, W] of what the simulated camera records of a video [S + 1, H, W]."""
    steps = (len(video) - 1) // saccade.steps
    times = 100 * np.arange(len(video))
    events = video_events(
        video, times, threshold=draws.threshold.item(), eps=saccade.eps, mismatch=0.0
    )
    frames = np.zeros((saccade.steps, 2, *video.shape[1:]), np.float32)
    np.add.at(frames, ((events["t"] - 1) // (100 * steps), *(events[axis] for axis in "pyx")), 1)
    return torch.from_numpy(frames)


def smoothly_moved(image, saccade, draws, per_frame=40):
    """What a camera sees of an image [1, H, W] that moves by fractions of a pixel."""
    size = np.array(image.shape[:0:-1])
    path = _path(draws, saccade.steps, per_frame, round(saccade.travel * size.min()))
    offset = draws.shift[0].numpy() * size - path[:, 0].numpy()
    around = int(size.max())
    image = np.pad(image[0].flip(-1).numpy() if draws.flip else image[0].numpy(), around, "edge")
    columns, rows = (
        _sampling(offset[:, i], size[i], size[i] + 2 * around, draws.zoom.item()) for i in (0, 1)
    )
    return np.clip(rows @ image @ columns.swapaxes(1, 2), 0, 1)


def correlations(images):
    """Of the counts, per frame, polarity and pixel, with the camera's, image by image [n]."""
    torch.manual_seed(0)
    saccade = Saccade(4, thin=0, noise=0, max_count=(999, 999))
    found = []
    for image in images:
        draws = saccade.draw(1)
        counts = torch.stack(
            [
                saccade(image, draws).flatten(),
                recorded(saccade, draws, smoothly_moved(image, saccade, draws)).flatten(),
            ]
        )
        found.append(torch.corrcoef(counts)[0, 1].item())
    return np.array(found)


def test_the_camera_emits_the_same_events_on_the_same_steps():
    torch.manual_seed(0)
    saccade = Saccade(3, thin=0, noise=0, max_count=(999, 999))
    for image in shapes(6):
        draws = saccade.draw(1)
        level = _levels(image[None], draws, 5, saccade.eps)
        path = _path(draws, 3, 4, 5).round().long() + 5
        views = torch.stack(list(_views(level, path, (32, 32))))[:, 0]
        video = ((views * draws.threshold).exp() - saccade.eps).clamp(0, 1).numpy()
        assert len(video) == 13
        ours, theirs = saccade(image, draws), recorded(saccade, draws, video)
        assert (ours != theirs).float().mean() < 0.002  # it rounds intensities to 16 bits
        assert ours.sum() > 200


def test_the_camera_emits_much_the_same_on_a_smooth_path():
    """Measured: 0.90 on average."""
    found = correlations(shapes(12))
    assert found.mean() > 0.8 and found.min() > 0.6
    torch.manual_seed(0)
    saccade = Saccade(4, thin=0, noise=0)
    (image,) = shapes(1)
    draws = saccade.draw(1)
    other = draws._replace(direction=draws.direction + math.pi)
    ours = saccade(image, other).flatten()
    theirs = recorded(saccade, draws, smoothly_moved(image, saccade, draws)).flatten()
    assert torch.corrcoef(torch.stack([ours, theirs]))[0, 1] < 0.4  # the control: the way back


@pytest.mark.slow
@pytest.mark.parametrize(("name", "least"), [("fashion_mnist", 0.85), ("tiny_imagenet", 0.75)])
def test_the_camera_emits_much_the_same_on_real_images(name, least):
    """Measured on 40 images: 0.88 on Fashion-MNIST, 0.82 on Tiny-ImageNet."""
    path = SHARED / f"{name}.npz"
    if not path.is_file():
        pytest.skip(f"{path} is missing: point SJ_OTTT_SHARED_DATA to a folder with {path.name}")
    data = ImageSet(str(path), "test", stats=ImageStats((0,), (1,)))  # which takes no time
    images = torch.stack([data[i][0] for i in range(10)])
    if images.shape[1] == 3:
        images = (images * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    assert correlations(images).mean() > least


@pytest.mark.gpu
def test_a_gpu_gives_the_same_events():
    saccade, images = Saccade(3, thin=0, noise=0), shapes(16)
    draws = saccade.draw(16)
    here = saccade(images, draws)
    there = saccade(images.cuda(), type(draws)(*(d.cuda() for d in draws)))
    assert (here != there.cpu()).float().mean() < 1e-3  # a logarithm's last bit at a threshold
    assert Saccade(3)(images.cuda()).is_cuda


def test_frames_do_not_depend_on_the_default_dtype():
    saccade, images = Saccade(4), torch.rand(3, 3, 16, 20)

    def frames():
        return saccade(images, generator=torch.Generator().manual_seed(0))

    expected = frames()
    torch.set_default_dtype(torch.float64)
    try:
        assert expected.any() and torch.equal(frames(), expected)
        assert frames().dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
