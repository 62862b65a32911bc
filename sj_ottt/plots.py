"""Pictures of a run: learning curves and sample event frames, as PNG bytes."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

BLUE, ORANGE, GREY = "#1f5fa8", "#d1495b", "#5a5a5a"
ON_COLOUR = np.array([0.82, 0.20, 0.18])
OFF_COLOUR = np.array([0.12, 0.37, 0.66])


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    # A canvas of its own, not pyplot: no global state, no display, whatever the caller's backend.
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", dpi=130, facecolor="white")
    return buffer.getvalue()


def curves(history: Sequence[Mapping[str, Any]], result: Mapping[str, Any]) -> bytes:
    """Draw loss and accuracies against the epoch.

    Args:
        history: One row per epoch: ``epoch``, ``loss``, ``train_accuracy``, and ``val_accuracy``
            (None where nothing was kept aside).
        result: The run's ``best_epoch`` and ``test_accuracy``, marked in the picture.
    """
    epochs = [row["epoch"] for row in history]
    marker = "o" if len(epochs) <= 40 else ""
    style = {"marker": marker, "markersize": 3.5, "linewidth": 1.6}
    figure = Figure(figsize=(9.2, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)

    left.plot(epochs, [row["loss"] for row in history], color=GREY, **style)
    left.set(title="Training loss", ylabel="loss per recording")
    left.set_ylim(bottom=0)

    right.plot(
        epochs, [100 * row["train_accuracy"] for row in history], color=BLUE, label="train", **style
    )
    if history[-1]["val_accuracy"] is not None:
        values = [100 * row["val_accuracy"] for row in history]
        right.plot(epochs, values, color=ORANGE, label="validation", **style)
    test = 100 * result["test_accuracy"]
    right.plot(
        result["best_epoch"],
        test,
        linestyle="none",
        marker="*",
        markersize=13,
        color="#f2a900",
        markeredgecolor="black",
        markeredgewidth=0.6,
        clip_on=False,
        zorder=5,
        label=f"test, model of epoch {result['best_epoch']}: {test:.2f}%",
    )
    right.set(title="Accuracy", ylabel="accuracy (%)")
    right.set_ylim(top=101)
    right.legend(frameon=False, loc="lower right")
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.margins(x=0.04)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    return _png(figure)


def frames(samples: Sequence[np.ndarray], names: Sequence[str], max_steps: int = 10) -> bytes:
    """Draw the event frames of a few recordings: a row for each, a column for each time step.

    Args:
        samples: Event counts, each [T, 2, H, W]; channel 0 OFF, channel 1 ON.
        names: The label of each row.
        max_steps: Columns at most; later steps are left out, which the title then says.
    """
    total, _, height, width = samples[0].shape
    shown = min(total, max_steps)
    cell = 0.95
    wide = cell * width / height
    figure = Figure(figsize=(1.2 + wide * shown, 0.85 + cell * len(samples)), layout="constrained")
    grid = figure.subplots(len(samples), shown, squeeze=False)
    for row, sample, name in zip(grid, samples, names, strict=True):
        counts = sample[:shown]
        # One bright pixel must not hide the rest: the 98th percentile of the active pixels is full.
        active = counts[counts > 0]
        full = float(np.percentile(active, 98)) if active.size else 1.0
        for axes, frame in zip(row, np.clip(counts / full, 0, 1), strict=True):
            off, on = frame[..., None]
            ink = on * (1 - ON_COLOUR) + off * (1 - OFF_COLOUR)
            axes.imshow(np.clip(1 - ink, 0, 1), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            for spine in axes.spines.values():
                spine.set(color="#c8c8c8", linewidth=0.6)
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", labelpad=8)
    for step, axes in enumerate(grid[0], start=1):
        axes.set_title(f"t = {step}", fontsize=9, color=GREY)
    figure.legend(
        handles=[Patch(color=ON_COLOUR, label="ON"), Patch(color=OFF_COLOUR, label="OFF")],
        loc="outside lower right",
        ncols=2,
        frameon=False,
        fontsize=9,
        title=f"first {shown} of {total} steps" if shown < total else None,
        title_fontsize=9,
    )
    return _png(figure)
