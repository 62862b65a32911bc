"""Batches that are augmented where the model is."""

import json

import pytest
import torch

from sj_ottt import InputError
from sj_ottt.data import Augmentation, Preprocessing
from sj_ottt.data.frames.framing import Framing
from sj_ottt.data.saccade import Saccade
from sj_ottt.run import training, training_run
from sj_ottt.run.build import _one_step
from sj_ottt.run.config import TrainConfig
from sj_ottt.run.training_data import TrainingData
from tests.packed_images import image_run
from tests.run.helpers import train

ON_DEVICE = {"augment_on": "device"}
RANDOM = {"flip": 0.5, "rotate": 8.0, "drop_events": 0.3, "time_jitter": 0.8, "cutout": 3}


def same_but_for_the_option(first, second):
    for result in (first, second):
        result = json.loads(json.dumps(result))
        for name in ("config", "seconds"):
            del result[name]
        yield result


def test_what_is_not_random_is_the_same_either_way(options):
    """All frames flipped: the network sees the same."""
    fixed = {"shift": 0, "drop_rate": 0, "epochs": 1}
    results = [
        train(options, **fixed, out=f"{options['out']}{i}", **how)
        for i, how in enumerate(({"flip": 1.0}, {"flip": 1.0, **ON_DEVICE}, {}))
    ]
    first, second = same_but_for_the_option(*results[:2])
    assert first == second
    first, other = same_but_for_the_option(results[0], results[2])
    assert first != other


def test_batches_are_augmented_once_and_measured_plain(options, monkeypatch):
    seen = {"train": [], "measured": []}
    step, measure = training_run.train_step, training_run.measure

    def spy(model, optimizer, x_seq, *rest, **kwargs):
        seen["train"].append(x_seq)
        return step(model, optimizer, x_seq, *rest, **kwargs)

    def spy_measure(model, loader, *rest):
        seen["measured"] += [x_seq for x_seq, _ in loader]
        return measure(model, loader, *rest)

    monkeypatch.setattr(training_run, "train_step", spy)
    monkeypatch.setattr(training_run, "measure", spy_measure)
    run = training.TrainingRun(TrainConfig(**{**options, **ON_DEVICE, **RANDOM}))
    assert run.data.augmented.transform is None  # the processes that load send plain counts
    assert [type(step).__name__ for step in run.data.on_device.args[0]] == [
        "DropEvents", "JitterTime", "RandomFlip", "RandomRotation", "RandomShift",
        "NormalizeFrames", "Cutout",
    ]  # fmt: skip
    run.run_epoch()
    for x_seq in seen["measured"]:
        torch.testing.assert_close(x_seq.square().mean((2, 3, 4)).sqrt().max(), torch.tensor(2.0))
    blank = [(x_seq == 0).all(0).all(1).any((1, 2)) for x_seq in seen["train"]]
    assert seen["train"] and all(b.all() for b in blank)  # by Cutout and by the edges


@pytest.mark.parametrize("encoding", ["direct", "saccade"])
def test_images_and_events_of_images(tmp_path, encoding):
    options = {"encoding": encoding, **ON_DEVICE, "flip": 0.5, "shift": 1, "epochs": 1}
    options |= {"size": (7, 8)}
    cfg = image_run(tmp_path, **options)
    data = TrainingData.open(cfg)
    sample = data.train[0][0]
    batch = torch.stack([sample] * 4, 0 if data.augmented.still else 1)
    done = data.on_device(batch)
    assert done.shape == batch.shape and done.shape[-2:] == (7, 8)
    if encoding == "direct":  # intensities, which are standardized afterwards
        assert data.augmented.encode is None and sample.min() >= 0 and sample.max() <= 1
        assert done.min() < 0
    else:  # counts, which are scaled afterwards
        assert isinstance(data.augmented.encode, Saccade)
        assert not torch.equal(sample, data.train[0][0])  # another movement each time
        assert torch.equal(sample, sample.round()) and not torch.equal(done, done.round())
    assert training.train(cfg)["epochs"] == 1


def test_encodings_of_augmented_images_are_refused(tmp_path):
    cfg = image_run(tmp_path, encoding="poisson", **ON_DEVICE)
    with pytest.raises(InputError, match=r"augment_on=device does not go with encoding=poisson"):
        TrainingData.open(cfg)


def test_photographs_are_cut_at_random_where_they_are_loaded(monkeypatch):
    asked = []

    class Photographs:
        def fit(self, augment):
            asked.append(augment)
            return []

        def with_transform(self, *chain):
            return chain

    preprocessing = Preprocessing(Framing(3), normalize=False)
    monkeypatch.setattr(Preprocessing, "_check_for_images", lambda *_: None)
    preprocessing.augment_batches(Photographs(), Augmentation())
    assert asked == [True]


def test_the_batch_that_calibrates_is_what_the_network_will_see(options):
    """Scaled, the same each time, and without a draw that others would miss."""
    cfg = TrainConfig(**{**options, **ON_DEVICE, "calibrate": True})
    data = TrainingData.open(cfg)
    state = torch.get_rng_state()
    first, second = _one_step(cfg, data), _one_step(cfg, data)
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(first, second)
    rms = first.square().mean((1, 2, 3)).sqrt()
    torch.testing.assert_close(rms, torch.full_like(rms, 2.0), atol=0.3, rtol=0)
    torch.manual_seed(5)
    assert torch.equal(_one_step(cfg, data), first)


def test_batches_are_varied_on_the_device_and_before_they_are_mixed(options, monkeypatch):
    calls = []
    moved, mixed = training_run.to_device, training_run.transforms.cutmix

    def to_device(*args):
        calls.append("moved")
        return moved(*args)

    def cutmix(*args):
        calls.append("mixed")
        return mixed(*args)

    monkeypatch.setattr(training_run, "to_device", to_device)
    monkeypatch.setattr(training_run.transforms, "cutmix", cutmix)
    run = training.TrainingRun(TrainConfig(**{**options, **ON_DEVICE, "cutmix": 1.0}))
    vary = run.data.on_device

    def on_device(x_seq):
        calls.append("varied")
        return vary(x_seq)

    object.__setattr__(run.data, "on_device", on_device)
    run.run_epoch()
    assert calls and calls == ["moved", "varied", "mixed"] * (len(calls) // 3)


def test_a_run_goes_on_as_it_began(options):
    """The numbers that are drawn are others."""
    train(options, epochs=1)
    with pytest.raises(InputError, match="augment_on was 'loader', now 'device'"):
        train(options, resume=True, epochs=1, **ON_DEVICE)
