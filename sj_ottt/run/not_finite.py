"""Where a network breaks that gives a loss which is not finite, and the list of such batches."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sj_ottt.learning import predict
from sj_ottt.learning.passes.outputs import tensors_in
from sj_ottt.run.checkpoint import write_file

__all__ = ["BROKEN", "first_not_finite", "note_broken"]

BROKEN = "not_finite.jsonl"
"""The list in a run's folder, a line of JSON for each batch; ``.n`` follows for process n > 0."""


def first_not_finite(model: nn.Module, x_seq: Tensor, steps: int | None) -> str:
    """Name the parameter, or the layer and time step, that is not finite first.

    Args:
        model: Is run once more on the batch, in evaluation mode, and left as it was.
        x_seq: The batch, as in `predict`.
        steps: As there.

    Returns:
        Part of a sentence.
    """
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            return f"the parameter {name} is not finite"
    found: list[str] = []
    calls: dict[str, int] = {}

    def look(name: str, kind: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            step = calls[name] = calls.get(name, -1) + 1
            if not found and not all(t.isfinite().all() for t in tensors_in(output)):
                found.append(f"{name} ({kind}) is the first layer to break, at time step {step}")

        return hook

    hooks = [
        module.register_forward_hook(look(name, type(module).__name__))
        for name, module in model.named_modules()
        if name and not next(module.children(), None)
    ]
    try:
        with torch.no_grad():
            predict(model, x_seq, steps)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else "all layers give finite values: the loss itself overflowed"


def note_broken(out: Path, rank: int, **said: Any) -> Path:
    """Add a line to the list of batches whose loss was not finite, and return the list's path.

    Args:
        out: The run's folder.
        rank: The number of this process, which has a list of its own: it alone saw its samples.
        **said: Of the line: ``epoch`` and ``batch``, counted from 1, ``loss`` (which step's, and
            what it is), ``where`` (the layer or parameter that broke), ``skipped``.

    Raises:
        InputError: The disk is full or not writable.
    """
    path = out / (f"{BROKEN}.{rank}" if rank else BROKEN)
    before = path.read_bytes() if path.is_file() else b""
    write_file(path, before + json.dumps(said).encode() + b"\n")
    return path
