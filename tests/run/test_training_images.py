"""Runs on still images, as they are and encoded as sequences."""

import pytest
import torch

from sj_ottt import InputError
from sj_ottt.learning import predict
from sj_ottt.run import evaluation, training, training_run
from sj_ottt.run.group import Group
from tests.packed_images import drawings, image_run, pack


def test_a_run_on_images(tmp_path):
    result = training.train(image_run(tmp_path, epochs=6, shift=0, cutout=0, flip=0))
    assert result["test_accuracy"] == 1.0 and result["n_test"] == 10
    rows = evaluation.evaluate(tmp_path / "run", steps=[1, 3], device="cpu")
    assert rows[1]["accuracy"] == 1.0
    trained = evaluation.load_trained(tmp_path / "run", "cpu")
    assert trained.info.in_chans == 1 and trained.info.frames.encoding == "direct"
    # Others' images are standardized as those that the network learned from.
    pack(tmp_path / "dim.npz", train_images=drawings(12)[0] // 2)
    dataset = trained.dataset(str(tmp_path / "dim.npz"), "test", 3)
    assert dataset.mean == trained.info.stats[0]
    image, _ = dataset[0]
    raw = torch.from_numpy(drawings(6, seed=4)[0][0])[None] / 255
    mean, std = (values[0] for values in trained.info.stats)
    torch.testing.assert_close(image, (raw - mean) / std)
    assert predict(trained.model, image[None], 3).shape == (1, 2)


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["direct", "poisson"])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, encoding, monkeypatch):
    whole = training.train(image_run(tmp_path, encoding=encoding))
    broken = image_run(tmp_path, encoding=encoding, out=str(tmp_path / "broken"))
    run_epoch, calls = training.TrainingRun.run_epoch, []

    def once(run, *args):
        if calls:
            raise KeyboardInterrupt
        calls.append(1)
        return run_epoch(run, *args)

    monkeypatch.setattr(training.TrainingRun, "run_epoch", once)
    with pytest.raises(KeyboardInterrupt):
        training.train(broken)
    monkeypatch.setattr(training.TrainingRun, "run_epoch", run_epoch)
    torch.manual_seed(1234)
    resumed = training.train(broken, resume=True)
    for result in (whole, resumed):
        del result["seconds"], result["config"]
    assert whole == resumed


def test_what_an_encoding_draws_is_the_same_whoever_loads_and_measures(tmp_path, monkeypatch):
    options = {"encoding": "poisson", "epochs": 1, "val_fraction": 0.3}
    training.train(image_run(tmp_path, **options))

    def spikes(_model, loader, *_others):
        drawn = [x[:, i].flatten(1).sum(1).tolist() for x, y in loader for i in range(len(y))]
        return drawn, 0.0

    for module in (evaluation, training_run):
        monkeypatch.setattr(module, "measure", spikes)
    for measured in (
        lambda n: training_run.TrainingRun(image_run(tmp_path, **options, workers=n))._validate(),
        lambda n: evaluation.evaluate(tmp_path / "run", workers=n, device="cpu")[0]["accuracy"],
    ):
        alone = measured(0)
        assert len(alone) >= 10 and alone[0] != alone[2] and measured(2) == alone
    dataset = evaluation.load_trained(tmp_path / "run", "cpu").dataset(None, "test", 3)
    parts = [
        spikes(None, evaluation.batches_to_measure(dataset, 10, 0, torch.device("cpu"), group))[0]
        for group in (Group(0, 2), Group(1, 2))
    ]
    assert [row for pair in zip(*parts, strict=True) for row in pair] == alone


def test_train_samples_limit_a_run(tmp_path):
    result = training.train(image_run(tmp_path, train_samples=20, val_fraction=0.2, epochs=1))
    assert (result["n_train"], result["n_val"], result["n_test"]) == (16, 4, 10)


def test_the_encoding_decides_the_number_of_steps(tmp_path):
    """Of which other numbers would have no effect."""
    wanted = {"model": "ltc_rnn", "encoding": "rows", "rule": "bptt", "epochs": 1}
    augment = {"flip": 0.0, "shift": 0, "cutout": 0}
    with pytest.raises(InputError, match=r"steps=3: encoding=rows makes 12 of an image"):
        training.train(image_run(tmp_path, **wanted, **augment))
    cfg = image_run(tmp_path, **wanted, **augment, steps=12)
    training.train(cfg)
    assert [row["steps"] for row in evaluation.evaluate(cfg.run.out, device="cpu")] == [12]
    with pytest.raises(InputError, match=r"steps=4: encoding=rows makes 12 of an image"):
        evaluation.evaluate(cfg.run.out, steps=[12, 4], device="cpu")
