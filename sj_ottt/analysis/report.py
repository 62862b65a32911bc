"""What the instruments find in a trained model: a table (CSV) and a picture (PNG) for each."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sj_ottt import plots
from sj_ottt.analysis.activity import firing_rates, latency_curve, synaptic_operations
from sj_ottt.analysis.energy import EnergyCosts, EnergyRow, energy
from sj_ottt.analysis.gradients import gradient_alignment
from sj_ottt.data import collate_for
from sj_ottt.errors import InputError, suggest
from sj_ottt.run.checkpoint import write_file
from sj_ottt.run.evaluation import load_trained

__all__ = ["INSTRUMENTS", "Instrument", "analyze"]

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Instrument:
    """What can be measured of a model.

    Attributes:
        measure: (model, x_seq [T, N, ...], target [N]) → what is found.
        rows: What is found → the rows of its table.
        draw: What is found → its picture, a PNG file's bytes.
    """

    measure: Callable[[nn.Module, Tensor, Tensor], Any]
    rows: Callable[[Any], Rows]
    draw: Callable[[Any], bytes]


def _named_values(first: str, second: str, found: Mapping[str, float]) -> Rows:
    return [{first: name, second: value} for name, value in found.items()]


def _curve(found: Sequence[float]) -> Rows:
    return [{"steps": t, "accuracy": value} for t, value in enumerate(found, start=1)]


def _energy_rows(found: Sequence[EnergyRow]) -> Rows:
    return [asdict(row) for row in found]


def _energy(costs: EnergyCosts | None) -> Instrument:
    """Return the instrument that counts with these costs."""
    return Instrument(
        lambda model, x, y: energy(model, x, costs),
        _energy_rows,
        lambda found: plots.energy({row.layer: row.joules for row in found}),
    )


INSTRUMENTS = {
    "rates": Instrument(
        lambda model, x, y: firing_rates(model, x),
        partial(_named_values, "neurons", "rate"),
        plots.rates,
    ),
    "synops": Instrument(
        lambda model, x, y: synaptic_operations(model, x),
        partial(_named_values, "layer", "operations"),
        plots.synops,
    ),
    "energy": _energy(None),
    "latency": Instrument(latency_curve, _curve, plots.latency),
    "alignment": Instrument(gradient_alignment, list, plots.alignment),
}
"""Instruments by name."""


def analyze(
    checkpoint: str | Path,
    what: Sequence[str] = tuple(INSTRUMENTS),
    data: str | None = None,
    *,
    out: str | Path | None = None,
    split: str = "test",
    samples: int = 128,
    steps: int | None = None,
    device: str = "auto",
    costs: EnergyCosts | None = None,
) -> dict[str, tuple[Rows, Path]]:
    """Measure a run's best model on one batch of recordings, drawn evenly from a part of the data.

    Args:
        checkpoint: The folder of a run.
        what: Names of `INSTRUMENTS`.
        data: Recordings; those that the run used if not given.
        out: Folder of the CSV and PNG files; `analysis` in the run's folder if not given.
        split: "test" or "train".
        samples: Recordings in the batch, at most.
        steps: Time steps of a recording; the number used in training if not given.
        device: As in `TrainConfig`.
        costs: Of an operation, for "energy"; those of `EnergyCosts()` if not given.

    Returns:
        For each instrument its rows and the path of its CSV file; the picture stands beside it.

    Raises:
        InputError: An unknown instrument, a number below 1, costs without "energy", or as
            `evaluation.evaluate`.
    """
    for name in what:
        if name not in INSTRUMENTS:
            raise InputError(
                f"{name!r} is no instrument: use {', '.join(INSTRUMENTS)}"
                f"{suggest(name, INSTRUMENTS)}"
            )
    if costs is not None and "energy" not in what:
        raise InputError("costs belong to the instrument energy: add it, or leave them out")
    for name, number in (("samples", samples), ("steps", steps)):
        if number is not None and number < 1:
            raise InputError(f"{name} must be a whole number from 1 on, not {number}")
    trained = load_trained(checkpoint, device)
    steps = steps or trained.info.frames.steps
    dataset = trained.dataset(data, split, steps)
    chosen = torch.linspace(0, len(dataset) - 1, min(samples, len(dataset))).long().tolist()
    x_seq, target = (
        part.to(trained.device) for part in collate_for(dataset)([dataset[i] for i in chosen])
    )
    if dataset.still:
        x_seq = x_seq.expand(steps, *x_seq.shape)
    folder = Path(checkpoint) / "analysis" if out is None else Path(out)
    found = {}
    for name in what:
        instrument = _energy(costs) if name == "energy" else INSTRUMENTS[name]
        measured = instrument.measure(trained.model, x_seq, target)
        rows, path = instrument.rows(measured), folder / f"{name}.csv"
        write_file(path, _csv(rows))
        write_file(path.with_suffix(".png"), instrument.draw(measured))
        found[name] = (rows, path)
    return found


def _csv(rows: Rows) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
