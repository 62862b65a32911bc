"""Transfer: what a training learns from and is tested on, which are run, what the table says."""

import argparse
import json
from collections import Counter

import pytest
from PIL import Image

from benchmarks import transfer
from benchmarks.transfer import Cell
from sj_ottt import InputError
from tests.helpers import write_recordings


@pytest.fixture
def shared(tmp_path):
    """A folder like that of the two data sets: three characters, and two digits of N-MNIST."""
    write_recordings(tmp_path / "nmnist_small", {"train": 20, "test": 5})
    (tmp_path / "alphabet").mkdir()
    for character, count in (("A", 2), ("B", 2), ("F", 3)):
        folder = tmp_path / "alphabet" / character
        folder.mkdir()
        for k in range(count):
            (folder / f"{character}{k}.npz").touch()
    return tmp_path


def test_one_recording_of_each_character_is_learnt_from_and_the_others_tested_on(shared):
    for which, others in (("0", {"A1", "B1", "F1", "F2"}), ("1", {"A0", "B0", "F0", "F2"})):
        cell = Cell(f"alphabet {which}", 1, "model", "scratch", 0)
        parts = transfer.split(cell, shared)
        assert {file.stem for _, file in parts["test"]} == others
        assert sorted(label for label, _ in parts["train"]) == ["A", "B", "F"]
        assert {file.stem for _, file in parts["train"]} == {f"{c}{which}" for c in "ABF"}


def test_digits_are_learnt_from_in_equal_number_and_never_tested_on(shared):
    seen = []
    for seed in (0, 1):
        parts = transfer.split(Cell("nmnist", 5, "model", "scratch", seed), shared)
        assert set(Counter(label for label, _ in parts["train"]).values()) == {5}
        assert not {file for _, file in parts["train"]} & {file for _, file in parts["test"]}
        seen.append({file for _, file in parts["train"]})
    assert seen[0] != seen[1]
    more = transfer.split(Cell("nmnist", 8, "model", "scratch", 0), shared)
    assert seen[0] < {file for _, file in more["train"]}  # so that only their number differs


def test_every_training_is_of_its_own_and_the_command_line_chooses(tmp_path):
    files = [tmp_path / folder / "weights.safetensors" for folder in "xy"]
    for file in files:
        file.parent.mkdir()
        file.write_text(str(file))
    args = argparse.Namespace(
        models=[f"a={files[0]}", "b"],
        seeds=[0, 1],
        sets=None,
        few=None,
        starts=None,
        fine_tuning=["lr=0.001"],
        from_scratch=[],
    )
    cells = list(transfer.wanted(args))
    assert len(cells) == len({cell.name for cell in cells}) == 2 * 6 * 3
    args.models = [f"a={file}" for file in files]
    both = [cell for cell in transfer.wanted(args) if cell.start != "scratch"]
    assert len({cell.name for cell in both}) == 2 * 2 * 6  # though the files have one name
    rows = transfer.summary(dict.fromkeys(both, 0.5))
    assert {row["start"] for row in rows} == {f"zoo {file} lr=0.001" for file in files}
    files[0].write_text("others")
    args.models = args.models[:1]
    changed = [cell.name for cell in transfer.wanted(args) if cell.start != "scratch"]
    assert not {cell.name for cell in both} & set(changed)
    assert {cell.options for cell in cells if cell.start == "scratch"} == {()}
    args.from_scratch = ["calibrate=true"]
    calibrated = [cell for cell in transfer.wanted(args) if cell.start == "scratch"]
    assert not {cell.name for cell in cells} & {cell.name for cell in calibrated}
    rows = transfer.summary(dict.fromkeys(calibrated, 0.5))
    assert {row["start"] for row in rows} == {"scratch calibrate=true"}
    args.models = ["a", "b"]
    args.sets, args.few, args.starts, args.seeds = ["nmnist"], [5], ["scratch"], [1]
    assert [(cell.model, cell.start) for cell in transfer.wanted(args)] == [
        ("a", "scratch"),
        ("b", "scratch"),
    ]


def test_a_finished_training_is_not_run_again_and_the_table_has_its_spread(shared, monkeypatch):
    ran = []

    def train(config, resume):
        ran.append(config)
        accuracy = 0.5 + 0.1 * config.run.seed
        folder = transfer.Path(config.run.out)
        assert len(list((folder / "data" / "train").glob("*/*"))) == 3 * 5
        found = {"test_accuracy": accuracy, "config": config.flat()}
        (folder / "result.json").write_text(json.dumps(found))
        (folder / "last.pt").write_bytes(b"a large checkpoint")
        return {"test_accuracy": accuracy}

    monkeypatch.setattr(transfer.training, "train", train)
    args = argparse.Namespace(
        models=["ottt_vgg5_ws=fashion_events"], seeds=[0, 1], sets=["nmnist"], few=[5],
        starts=None, data=str(shared), runs=str(shared / "runs"), fine_tuning=["lr=0.5"], jobs=1,
        from_scratch=[],
    )  # fmt: skip
    rows = transfer.transfer(args)
    assert transfer.transfer(args) == rows and len(ran) == 4
    assert not list((shared / "runs").rglob("*.pt"))
    assert {config.network.pretrained for config in ran} == {None, "fashion_events"}
    assert [config.optimisation.lr for config in ran] == [2e-3, 0.5] * 2
    assert [(row["start"], row["accuracy"], row["sd"]) for row in rows] == [
        ("scratch", "55.0", "7.1"),
        ("zoo lr=0.5", "55.0", "7.1"),
    ]
    with pytest.raises(InputError, match="seed-0: trained with other options"):
        monkeypatch.setitem(transfer.FROM_SCRATCH, "lr", 0.1)
        transfer.transfer(args)
    with Image.open(shared / "runs" / "transfer.png") as picture:
        assert picture.size[0] > 300
