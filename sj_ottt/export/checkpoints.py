"""A run's best model as a file for another program."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sj_ottt._files import atomic_write
from sj_ottt.errors import InputError, suggest
from sj_ottt.export.nir_graph import to_nir
from sj_ottt.export.programs import to_onnx, to_torch
from sj_ottt.run.evaluation import load_trained

__all__ = ["FORMATS", "ExportedModel", "export_checkpoint"]

FORMATS = ("nir", "onnx", "torch")


@dataclass(frozen=True)
class ExportedModel:
    """A file for another program.

    Attributes:
        path: The file.
        input_shape: Of what it takes; N stands for any batch.
        classes: Names of its classes, in the order of its outputs.
        readers: Of a NIR file, as in `NIRExport`.
    """

    path: Path
    input_shape: tuple[int | str, ...]
    classes: tuple[str, ...]
    readers: dict[str, str] = field(default_factory=dict)


def export_checkpoint(
    checkpoint: str | Path,
    to: str,
    out: str | Path,
    steps: int | str | None = None,
    reader: str | None = None,
) -> ExportedModel:
    """Write a run's best model for another program, with its classes and its preprocessing.

    What the run's own file says of the model (`ModelInfo`) is in the metadata of the new one: each
    value as JSON under its name, among them ``classes``, ``sensor_size`` and how events become
    frames.

    Args:
        checkpoint: The folder of the run.
        to: "nir", "onnx" or "torch".
        out: The file; written so that the old or the new one is there, whole.
        steps: Of "onnx" and "torch": T, so that the file takes whole sequences of T steps, or "one"
            for one step with the state as input and output; None takes the run's T. A NIR graph
            always takes one step at a time.
        reader: Of "nir", as in `to_nir`.

    Raises:
        InputError: An unknown format, arguments that do not belong together, a missing or changed
            checkpoint, a model that the format cannot hold, or a file that cannot be written.
    """
    if to not in FORMATS:
        raise InputError(
            f'to="{to}" is unknown: use one of {", ".join(FORMATS)}{suggest(to, FORMATS)}'
        )
    if to != "nir" and reader is not None:
        raise InputError(f'reader="{reader}" goes with to="nir" only: leave it out')
    if to == "nir" and steps not in (None, "one"):
        raise InputError(f"steps={steps}: a NIR graph takes one time step at a time; leave it out")
    trained = load_trained(checkpoint, "cpu")
    count = _count(steps, trained.info.frames.steps)
    frame = trained.info.in_chans, *_size(trained.preprocessing.framing.size, trained.path)
    example = torch.rand(2, *frame, generator=torch.Generator().manual_seed(0))
    said = trained.info.to_metadata()
    readers: dict[str, str] = {}
    if to == "nir":
        values = {key: json.dumps(value) for key, value in said.items()}
        exported = to_nir(trained.model, example, reader or "snntorch", values)
        data, readers, count = exported.to_bytes(), exported.readers, None
    else:
        write: Callable[..., bytes] = to_onnx if to == "onnx" else to_torch
        data = write(trained.model, example, count, said)
    path = Path(out)
    with atomic_write(path, remedy="free some space, or choose another file") as file:
        file.write(data)
    shape: tuple[Any, ...] = ("N", *frame) if count is None else (count, "N", *frame)
    return ExportedModel(path, shape, trained.classes, readers)


def _count(steps: int | str | None, of_run: int) -> int | None:
    """Return T; None for one step."""
    if steps is None:
        return of_run
    if steps == "one":
        return None
    if not isinstance(steps, int) or steps < 1:
        raise InputError(f'steps={steps}: give a whole number from 1 on, or "one"')
    return steps


def _size(size: int | tuple[int, int] | None, path: Path) -> tuple[int, int]:
    if size is None:
        raise InputError(f"{path} does not say the size of its frames: train again")
    return (size, size) if isinstance(size, int) else size
