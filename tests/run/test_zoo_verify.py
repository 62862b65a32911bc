"""Figures measured again: among the classes of their data, on as many samples as they say."""

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save

from sj_ottt import InputError, zoo
from sj_ottt.data import Framing, Preprocessing
from sj_ottt.learning import predict
from sj_ottt.run import training
from sj_ottt.run.config import TrainConfig
from sj_ottt.run.zoo_export import export_run
from sj_ottt.run.zoo_verify import verify
from sj_ottt.zoo.cards import Figure, read_card, write_card
from tests.helpers import CLASSES, write_recordings

INPUT = {"steps": 2, "size": [16, 16]}


def put(folder, model, figures, classes):
    cfg = {"input_size": [2, 16, 16], "num_classes": len(classes), "label_names": list(classes)}
    card = write_card(
        "test_ottt_vgg.x", about="", license="mit", trained_on="", provenance={}, results=figures
    )
    return zoo.add_to_zoo(folder, "test_ottt_vgg.x", save(model.state_dict()), card, cfg)


def test_a_part_of_the_classes_and_of_the_samples(tmp_path):
    torch.manual_seed(0)
    data = write_recordings(tmp_path / "bands", {"train": 1, "test": 8})
    model = timm.create_model("test_ottt_vgg", in_chans=2, num_classes=5)
    with torch.no_grad():
        model.fc.weight.mul_(20)
        model.fc.bias[0] = 1e4  # a class that the data set has not
    seen = Preprocessing(Framing(2, (16, 16))).open(str(data), "test")
    right = []
    for x_seq, target in (seen[i] for i in range(len(seen))):
        right.append(predict(model, x_seq[:, None])[0, 1:4].argmax().item() == target)
    expected = sum(right[:20]) / 20
    assert 0 < expected < 1 and expected != sum(right) / 24
    figures = [
        Figure("bands", "test", 20, "accuracy", value, 0.01, INPUT)
        for value in (expected, expected + 0.009, expected + 0.011)
    ]
    entry = put(tmp_path / "zoo", model, figures, ("other", *CLASSES, "last"))
    rows = verify(entry.name, [str(data)], tmp_path / "zoo", batch_size=7, device="cpu")
    assert [row.value for row in rows] == [pytest.approx(expected)] * 3
    assert [row.agrees for row in rows] == [True, True, False]


def test_a_figure_says_how_recordings_were_read(tmp_path):
    """Text states neither its sensor nor its unit of time."""
    data, rng = tmp_path / "rows", np.random.default_rng(0)
    for folder in (data / part / name for part in ("train", "test") for name in "ab"):
        folder.mkdir(parents=True)
        for i in range(3):
            rows = np.stack([np.arange(200), *rng.integers(0, 16, (2, 200)), np.arange(200) % 2], 1)
            np.savetxt(folder / f"{i}.txt", rows, fmt="%d")
    config = TrainConfig(
        model="test_ottt_vgg", data=str(data), out=str(tmp_path / "run"), epochs=1, steps=2,
        val_fraction=0, sensor_size=(40, 44), time_unit="us", device="cpu",
    )  # fmt: skip
    training.train(config)
    entry = export_run(tmp_path / "run", "rows", tmp_path / "zoo")
    (figure,) = read_card(entry).results
    assert figure.reading == {"sensor_size": [40, 44], "time_unit": "us"}
    (row,) = verify(entry.name, [str(data)], tmp_path / "zoo", device="cpu")
    assert row.agrees
    text = entry.card.read_text()
    for wrong, message in (("- 8\n", "the sensor of height 8 and"), ("- -8\n", "cannot be made")):
        entry.card.write_text(text.replace("- 40\n", wrong))
        with pytest.raises(InputError, match=message):
            verify(entry.name, [str(data)], tmp_path / "zoo", device="cpu")


def test_data_that_are_not_the_cards_are_refused(tmp_path, monkeypatch):
    data = write_recordings(tmp_path / "bands", {"train": 1, "test": 2})
    model = timm.create_model("test_ottt_vgg", in_chans=2, num_classes=3)
    figures = [
        Figure("bands", "test", 6, "accuracy", 0.5, 1.0, INPUT),
        Figure("others", "test", 9, "accuracy", 0.5, 1.0, INPUT),
        Figure("bands", "train", 3, "accuracy", 0.5, 1.0, {**INPUT, "split_by": "eye"}),
    ]
    entry = put(tmp_path / "zoo", model, figures, CLASSES)
    others = write_recordings(tmp_path / "others", {"train": 1, "test": 2})
    third = tmp_path / "third"
    for given, message in (
        ((), r"accuracy of 50\.00% is of bands, the first 6 samples of its test part: give --data"),
        ((str(data),), "is of others, the first 9 samples"),
        ((str(data), str(others), str(third)), "--data .*third: the figures of .* bands, others"),
        ((str(data), str(others)), "others has 6 samples in its test part, .* is of 9"),
    ):
        with pytest.raises(InputError, match=message):
            verify(entry.name, given, tmp_path / "zoo")
    # Where they lie in the current folder, nothing has to be given.
    monkeypatch.chdir(tmp_path)
    write_recordings(tmp_path / "more", {"test": 3})
    for name in CLASSES:
        (tmp_path / "more" / "test" / name / "2.npz").rename(
            tmp_path / "others" / "test" / name / "2.npz"
        )
    with pytest.raises(InputError, match=r"its input cannot be made .*split_by.*; mend it"):
        verify(entry.name, (), tmp_path / "zoo")
