"""A few of the kills of ``python -m tests.run.kills``; and that its checks would fail."""

import os

import pytest
import torch

from sj_ottt.run.checkpoint import load_checkpoint, save_checkpoint
from tests.helpers import assert_same_run
from tests.run.kills import Trial

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("processes", "kills"), [(1, 5), (2, 3)])
def test_killed_runs_end_as_if_undisturbed(processes, kills, tmp_path):
    trial = Trial(tmp_path, processes, int.from_bytes(os.urandom(4), "big"))
    trial.run(kills)
    assert trial.kills.total() == kills and trial.runs and trial.resumed
    # The control: one bit of one weight that a resume had lost would be seen.
    state = load_checkpoint(tmp_path / "again")
    moments = state["optimizer"]["state"][0]["exp_avg"]
    moments.view(-1)[0] = torch.nextafter(moments.view(-1)[0], torch.tensor(9.0))
    save_checkpoint(tmp_path / "again", state)
    with pytest.raises(AssertionError):
        assert_same_run(trial.whole, tmp_path / "again")
