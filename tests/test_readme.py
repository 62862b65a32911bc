"""The README's Python, run as it stands."""

import re
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

import sj_ottt  # noqa: F401  (as the README says: importing it registers the models)
from tests.helpers import write_recordings

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


def test_there_are_blocks():
    assert len(BLOCKS) == 6


@pytest.mark.parametrize("block", BLOCKS)
def test_block_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_recordings(tmp_path / "MY_RECORDINGS", {"train": 4, "test": 1})
    weights = timm.create_model("ottt_vgg5_ws", num_classes=10, in_chans=2).state_dict()
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    save_file(weights, tmp_path / "runs" / "mine" / "best.safetensors")
    names = {"timm": timm}
    exec(compile(block, str(README), "exec"), names)
    if "net" in names:
        assert names["net"](torch.rand(2, 1, 8, 8)).shape == (2, 10)
    if "loss" in names:
        assert names["loss"].isfinite()
    if "logits" in names:
        assert names["logits"].shape[1] == 3


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_every_file_it_links_to_is_there(page):
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text())
    assert all((ROOT / link).exists() for link in links), links


def test_every_room_that_contributing_names_is_there():
    rooms = re.findall(r"`(\w+/(?:\w+/)*)`", (ROOT / "CONTRIBUTING.md").read_text())
    assert len(rooms) > 15
    for room in rooms:
        assert [*ROOT.glob(room), *ROOT.glob(f"sj_ottt/**/{room}")], room
