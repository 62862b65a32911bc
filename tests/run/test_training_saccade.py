"""Runs on images as events, and what their models do with recordings."""

import numpy as np
import pytest
import torch

from sj_ottt import InputError
from sj_ottt.cli.main import main
from sj_ottt.data import Saccade, read_events, transforms, write_events
from sj_ottt.data.recordings.source import Source
from sj_ottt.data.recordings.streams import WHOLE
from sj_ottt.data.simulate.camera import saccade_events
from sj_ottt.inference.predict import check_trained, label_stream, label_windows
from sj_ottt.run import evaluation, training
from sj_ottt.run.training_data import TrainingData
from tests.helpers import same, weights, write_recordings
from tests.packed_images import NAMES, image_run
from tests.run.helpers import interrupt_after

OPTIONS = {"encoding": "saccade", "cutout": 0, "flip": 0.0}


def blocks(n, seed):
    """Images [n, 12, 10] of a bright block on black, whose side is the class, and their labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n, dtype=np.uint8) % 2
    images = np.zeros((n, 12, 10), np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[3:9, 1 + 5 * label : 4 + 5 * label] = rng.integers(100, 255, (6, 3))
    return images, labels


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on images of blocks, which has learned where events are."""
    root = tmp_path_factory.mktemp("saccade")
    parts = {}
    for part, n in (("train", 40), ("test", 10)):
        parts[f"{part}_images"], parts[f"{part}_labels"] = blocks(n, seed=n)
    np.savez(root / "x.npz", class_names=np.array(NAMES), **parts)
    cfg = image_run(root, **OPTIONS, epochs=8)
    assert training.train(cfg)["test_accuracy"] == 1.0
    return cfg


@pytest.fixture
def trained(run):
    return evaluation.load_trained(run.run.out, "cpu")


@pytest.fixture
def recordings(tmp_path):
    """The same kind of images before the simulated camera, larger, in folders by their class."""
    images, labels = blocks(8, seed=9)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = tmp_path / "recordings" / ("train", "test")[i % 4 > 1] / NAMES[label] / f"{i}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_events(path, saccade_events(image, sensor_size=(24, 20), rounds=2.0, travel=0.2))
    (tmp_path / "recordings" / "dataset.json").write_text('{"sensor_size": [24, 20]}')
    return tmp_path / "recordings"


def test_training_draws_anew_and_evaluation_does_not(tmp_path):
    cfg = image_run(tmp_path, **OPTIONS)
    data = TrainingData.open(cfg)
    assert (data.in_chans, data.steps, data.shown_steps) == (2, 3, None)
    torch.manual_seed(0)
    assert not torch.equal(data.train[0][0], data.train[0][0])
    for part in (data.validation, data.test):
        assert torch.equal(part[0][0], part[0][0])
    image = data.test.unprocessed()[0][0]
    expected = transforms.NormalizeFrames()(Saccade(3, random=False)(image))
    assert torch.equal(data.test[0][0], expected) and expected.shape == (3, 2, 12, 10)
    counts = TrainingData.open(cfg.replace({"normalize": False})).test[0][0]
    assert torch.equal(counts, Saccade(3, random=False)(image))


def test_images_are_flipped_on_demand_only(tmp_path, monkeypatch):
    seen = []
    draw = Saccade.draw

    def kept(*args, **options):
        seen.append(draw(*args, **options))
        return seen[-1]

    monkeypatch.setattr(Saccade, "draw", kept)
    data = TrainingData.open(image_run(tmp_path, **OPTIONS))
    for i in range(20):
        data.train[i]
    assert len(seen) > 20 and not any(draws.flip.any() for draws in seen)
    names = [type(step).__name__ for step in data.augmented.encode.transforms]
    assert names == ["Saccade", "RandomShift", "NormalizeFrames"]
    more = {"flip": 0.5, "cutout": 2, "drop_events": 0.2, "time_jitter": 0.5, "rotate": 9}
    data = TrainingData.open(image_run(tmp_path, **{**OPTIONS, **more}))
    names = [type(step).__name__ for step in data.augmented.encode.transforms]
    assert names == [
        "Saccade", "DropEvents", "JitterTime", "RandomFlip", "RandomRotation", "RandomShift",
        "NormalizeFrames", "Cutout",
    ]  # fmt: skip
    assert data.augmented.transform is None and data.train[0][0].isfinite().all()


def test_options_that_only_recordings_have_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"crop=\(4, 4\) is for recordings, but .* still images"):
        TrainingData.open(image_run(tmp_path, **OPTIONS, crop=(4, 4)))
    data = write_recordings(tmp_path / "data", {"train": 3, "test": 1})
    with pytest.raises(InputError, match=r"encoding=saccade makes sequences of still .* holds rec"):
        TrainingData.open(image_run(tmp_path, **OPTIONS).replace({"data": str(data)}))


def test_a_run_states_what_it_learned_on(run, trained):
    info = trained.info
    assert (info.in_chans, info.frames.encoding, info.sensor_size) == (2, "saccade", None)
    assert trained.preprocessing.events_from_images
    first, again = (evaluation.evaluate(run.run.out, steps=[1, 3], device="cpu") for _ in range(2))
    assert [row["accuracy"] for row in first] == [row["accuracy"] for row in again]
    assert first[1]["accuracy"] == 1.0


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, monkeypatch):
    whole = training.train(image_run(tmp_path, **OPTIONS))
    broken = image_run(tmp_path, **OPTIONS, out=str(tmp_path / "broken"))
    interrupt_after(monkeypatch, "run_epoch", calls=1)
    with pytest.raises(KeyboardInterrupt):
        training.train(broken)
    monkeypatch.undo()
    torch.manual_seed(1234)
    resumed = training.train(broken, resume=True)
    for result in (whole, resumed):
        del result["seconds"], result["config"]
    assert whole == resumed


def test_recordings_of_any_sensor_can_be_predicted(trained, recordings):
    files = sorted(recordings.rglob("*.npz"))
    labels = []
    for path in files:
        source = Source(str(path), [read_events(path)], (24, 20))
        (one,) = label_windows(trained, source, WHOLE, WHOLE)
        labels.append(one.label)
        assert list(label_stream(trained, source, 100_000))
    assert sum(label == path.parent.name for label, path in zip(labels, files, strict=True)) >= 7
    dataset = trained.dataset(str(recordings), "train", 3)  # as one data set, the same frames
    frames = trained.preprocessing(read_events(files[-1]), (24, 20), files[-1])
    assert frames.shape == (3, 2, 12, 10) and any(torch.equal(frames, x) for x, _ in dataset)
    (row,) = evaluation.evaluate(trained.path.parent, str(recordings), split="train", device="cpu")
    assert row["n"] == 4


def test_the_size_of_the_sensor_must_be_known(run, trained, recordings, capsys):
    path = sorted(recordings.rglob("*.npz"))[0]
    with pytest.raises(InputError, match=r"does not state the size .* give --sensor-size H W"):
        next(label_windows(trained, Source("here", []), WHOLE, WHOLE))
    argv = ["--checkpoint", run.run.out, "--device", "cpu", str(path)]
    assert main(["predict", *argv]) == 2
    assert "give --sensor-size H W" in capsys.readouterr().err
    assert main(["predict", *argv, "--sensor-size", "24", "20"]) == 0
    assert path.parent.name in capsys.readouterr().out
    assert main(["adapt", *argv, "--label-from-folder", "--sensor-size", "24", "20"]) == 0
    assert "learned from 1 samples" in capsys.readouterr().out


def test_models_of_images_are_refused_still(tmp_path):
    cfg = image_run(tmp_path, epochs=1)
    training.train(cfg)
    with pytest.raises(InputError, match=r"not trained on recordings: .* or on images with enc"):
        check_trained(evaluation.load_trained(cfg.run.out, "cpu"))


def test_recordings_learn_on_from_it(run, recordings, tmp_path):
    cfg = image_run(
        tmp_path, data=str(recordings), pretrained=run.run.out, epochs=1, val_fraction=0, lr=1e-6
    )
    started = training.TrainingRun(cfg)
    before = weights(run.run.out, "best")
    after = {name: value for name, value in started.model.state_dict().items() if name in before}
    assert same(before, after) and len(after) == len(before)
    assert training.train(cfg)["n_test"] == 4
