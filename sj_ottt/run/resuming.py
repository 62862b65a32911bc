"""Whether a checkpoint is one of the run that is to go on from it."""

from collections.abc import Mapping
from typing import Any

from sj_ottt.errors import InputError
from sj_ottt.run.config import TrainConfig

__all__ = ["check_same_run"]

# What may differ between a run and its resumption: where it runs, where it and its recordings are
# kept, and what becomes of a batch that is not finite. That the recordings are the same ones is
# checked by their names and sizes.
_FREE = {
    *("out", "device", "backend", "chunk", "cuda_graph", "workers", "data"),
    *("save_every", "time_limit", "on_nan"),
}


def check_same_run(
    cfg: TrainConfig, data_digest: str, pull_digest: str | None, state: Mapping[str, Any]
) -> None:
    """Refuse a checkpoint of another run.

    Args:
        cfg: The configuration of the run that is to go on.
        data_digest: Of its recordings.
        pull_digest: Of the weights that it is pulled to; None where there are none.
        state: The checkpoint.

    Raises:
        InputError: It is of another configuration, other recordings or another pull.
    """
    out = cfg.run.out
    # An option that the checkpoint lacks is newer than it: the run had the default.
    before = {**TrainConfig().flat(), **state["config"]}
    now = cfg.flat()
    changed = [k for k in now if k not in _FREE and before[k] != now[k]]
    if changed:
        listed = ", ".join(f"{k} was {before[k]!r}, now {now[k]!r}" for k in changed)
        raise InputError(
            f"cannot resume {out} with another configuration: {listed}; "
            "give the same values or none, or start a new run in another --out"
        )
    if state["data_digest"] != data_digest:
        raise InputError(
            f"the recordings in {cfg.dataset.data} are not those that {out} was trained on; put "
            "them back, or start a new run in another --out"
        )
    # A checkpoint from before there was this digest says nothing of it.
    if state.get("pull_digest", pull_digest) != pull_digest:
        raise InputError(
            f"the weights in {cfg.network.pull_to} are not those that {out} was pulled to; put "
            "them back, or start a new run in another --out"
        )
