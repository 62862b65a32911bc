"""Pictures of a run, of its data and of the analysis of its model.

Every public function returns the bytes of a file: `animation` of a GIF, all others of a PNG.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw, ImageFont

BLUE, ORANGE, GREY = "#1f5fa8", "#d1495b", "#5a5a5a"
COLOURS = (BLUE, ORANGE, "#2a9d8f", "#e9a23b", "#7b4fa3", "#8c6d46", "#d977b4", "#4d4d4d")
MARKERS = "osD^vP*X"
ON_COLOUR = np.array([0.82, 0.20, 0.18])
OFF_COLOUR = np.array([0.12, 0.37, 0.66])
FRAME_MS = 80  # how long an animation shows each frame


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    # A canvas of its own, not pyplot: no global state, no display, whatever the caller's backend.
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", dpi=130, facecolor="white")
    return buffer.getvalue()


def curves(history: Sequence[Mapping[str, Any]], result: Mapping[str, Any]) -> bytes:
    """Draw the loss and the accuracies of each epoch.

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
        max_steps: Columns at most; later steps are left out, which the legend then says.
    """
    total, _, height, width = samples[0].shape
    shown = min(total, max_steps)
    cell = 0.95
    wide = cell * width / height
    figure = Figure(figsize=(1.2 + wide * shown, 0.85 + cell * len(samples)), layout="constrained")
    grid = figure.subplots(len(samples), shown, squeeze=False)
    for row, sample, name in zip(grid, samples, names, strict=True):
        counts = sample[:shown]
        for axes, frame in zip(row, _event_colours(counts), strict=True):
            _show_events(axes, frame)
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", labelpad=8)
    for step, axes in enumerate(grid[0], start=1):
        axes.set_title(f"t = {step}", fontsize=9, color=GREY)
    _polarity_legend(figure, f"first {shown} of {total} steps" if shown < total else None)
    return _png(figure)


def images(samples: Sequence[np.ndarray], names: Sequence[str]) -> bytes:
    """Draw still images side by side, each under its label.

    Args:
        samples: Images in [0, 1], each [1, H, W] or [3, H, W].
        names: The label of each.
    """
    figure = Figure(figsize=(1.1 * len(samples), 1.5), layout="constrained")
    for axes, image, name in zip(
        figure.subplots(1, len(samples), squeeze=False)[0], samples, names, strict=True
    ):
        axes.imshow(image.transpose(1, 2, 0), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        axes.set_title(name, fontsize=8, color=GREY)
        axes.spines[:].set_visible(False)
    return _png(figure)


def contact_sheet(rows: Mapping[str, Sequence[np.ndarray]], title: str) -> bytes:
    """Draw samples side by side, a row for each class.

    Args:
        rows: For each class, event counts [2, H, W]; channel 0 OFF, channel 1 ON.
        title: What the pictures show.
    """
    columns = max(map(len, rows.values()))
    height, width = next(iter(rows.values()))[0].shape[1:]
    cell = 0.95
    wide = cell * width / height
    figure = Figure(
        figsize=(1.2 + 0.08 * max(map(len, rows)) + wide * columns, 0.9 + cell * len(rows)),
        layout="constrained",
    )
    figure.suptitle(title, fontsize=10, color=GREY)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for row, (name, samples) in zip(grid, rows.items(), strict=True):
        for axes, counts in zip(row, samples, strict=False):
            _show_events(axes, _event_colours(counts))
        for axes in row[len(samples) :]:
            axes.set_axis_off()
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", labelpad=8)
    _polarity_legend(figure)
    return _png(figure)


def animation(counts: np.ndarray, step_ms: float, title: str, shortest_side: int = 240) -> bytes:
    """Draw a recording as an animated GIF, with the time below it.

    Args:
        counts: Event counts [T, 2, H, W]; channel 0 OFF, channel 1 ON.
        step_ms: The duration of a frame in the recording, in ms.
        title: Text before the time.
        shortest_side: The picture's height and width, without the time, are at least so many
            pixels.
    """
    height, width = counts.shape[2:]
    scale = max(1, -(-shortest_side // min(height, width)))
    size, bar = (width * scale, height * scale), 22
    font = ImageFont.load_default(12)
    images = []
    for i, colours in enumerate(_event_colours(counts)):
        image = Image.new("RGB", (size[0], size[1] + bar), "white")
        frame = Image.fromarray((255 * colours).astype(np.uint8))
        image.paste(frame.resize(size, Image.Resampling.NEAREST))
        draw = ImageDraw.Draw(image)
        draw.rectangle((0, size[1], size[0], size[1] + 2), fill="#e4e4e4")
        draw.rectangle((0, size[1], size[0] * (i + 1) // len(counts), size[1] + 2), fill=GREY)
        text = f"{title}   {round((i + 1) * step_ms)} ms"
        draw.text((4, size[1] + 5), text, fill=GREY, font=font)
        images.append(image)
    buffer = io.BytesIO()
    images[0].save(
        buffer, "GIF", save_all=True, append_images=images[1:], duration=FRAME_MS, loop=0
    )
    return buffer.getvalue()


def _event_colours(counts: np.ndarray) -> np.ndarray:
    """Return colours in [0, 1], [..., H, W, 3], of event counts [..., 2, H, W], white for none."""
    # One bright pixel must not hide the rest: the 98th percentile of the active pixels is full.
    active = counts[counts > 0]
    full = float(np.percentile(active, 98)) if active.size else 1.0
    ink = np.clip(counts / full, 0, 1)[..., None]
    off, on = ink[..., 0, :, :, :], ink[..., 1, :, :, :]
    return np.clip(1 - on * (1 - ON_COLOUR) - off * (1 - OFF_COLOUR), 0, 1)


def _show_events(axes: Axes, colours: np.ndarray) -> None:
    axes.imshow(colours, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color="#c8c8c8", linewidth=0.6)


def _polarity_legend(figure: Figure, title: str | None = None) -> None:
    figure.legend(
        handles=[
            Patch(color=tuple(ON_COLOUR), label="ON"),
            Patch(color=tuple(OFF_COLOUR), label="OFF"),
        ],
        loc="outside lower right",
        ncols=2,
        frameon=False,
        fontsize=9,
        title=title,
        title_fontsize=9,
    )


def rates(found: Mapping[str, float]) -> bytes:
    """Draw what `analysis.firing_rates` returns."""
    return _bars(found, "spikes per neuron and time step", "{:.3f}")


def synops(found: Mapping[str, float]) -> bytes:
    """Draw what `analysis.synaptic_operations` returns."""
    millions = {name: count / 1e6 for name, count in found.items()}
    return _bars(millions, "million synaptic operations per recording", "{:.3g}")


def energy(joules: Mapping[str, float]) -> bytes:
    """Draw the joules of each layer of what `analysis.energy` returns."""
    nanojoules = {name: 1e9 * value for name, value in joules.items()}
    return _bars(nanojoules, "nanojoules per recording", "{:.3g}")


def _bars(found: Mapping[str, float], label: str, text: str) -> bytes:
    """Draw one horizontal bar a name, the last (the sum or the mean) in another colour."""
    names, values = list(found), list(found.values())
    figure = Figure(figsize=(6.4, 0.9 + 0.3 * len(names)), layout="constrained")
    axes = figure.subplots()
    colours = [BLUE] * (len(names) - 1) + [GREY]
    bars = axes.barh(names, values, color=colours, height=0.7)
    axes.bar_label(bars, [text.format(value) for value in values], padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(label)
    axes.margins(x=0.14)
    axes.set_axisbelow(True)
    axes.grid(axis="x", alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return _png(figure)


def latency(curve: Sequence[float]) -> bytes:
    """Draw what `analysis.latency_curve` returns."""
    percent = [100 * accuracy for accuracy in curve]
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.plot(
        range(1, len(percent) + 1),
        percent,
        color=BLUE,
        marker="o",
        markersize=3.5,
        linewidth=1.6,
    )
    axes.set(xlabel="inference steps", ylabel="accuracy (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    lowest = min(percent)
    axes.set_ylim(max(0, lowest - 0.1 * (100 - lowest) - 1), 100.5)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return _png(figure)


def alignment(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Draw the rows of `analysis.gradient_alignment`: one panel for each reference.

    Each rule has one marker for each parameter; a cosine of None has none.
    """
    references = list(dict.fromkeys(row["against"] for row in rows))
    rules = list(dict.fromkeys(row["rule"] for row in rows))
    names = [n for n in dict.fromkeys(r["parameter"] for r in rows) if n.endswith("weight")]
    names.append("all")
    figure = Figure(figsize=(4.6 * len(references), 1.7 + 0.34 * len(names)), layout="constrained")
    panels = figure.subplots(1, len(references), sharey=True, squeeze=False)[0]
    positions = np.arange(len(names))
    lowest = min([0.0, *(row["cosine"] for row in rows if row["cosine"] is not None)])
    for axes, reference in zip(panels, references, strict=True):
        for index, rule in enumerate(rules):
            cosines = {
                row["parameter"]: np.nan if row["cosine"] is None else row["cosine"]
                for row in rows
                if (row["rule"], row["against"]) == (rule, reference)
            }
            # Side by side, because rules often agree.
            height = positions + 0.8 / max(len(rules), 4) * (index - (len(rules) - 1) / 2)
            colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
            style = {"color": colour, "label": rule, "markersize": 5}
            axes.plot([cosines[name] for name in names], height, marker, **style)
        axes.axvline(0, color=GREY, linewidth=0.8)
        axes.set(title=f"against {reference}", xlabel="cosine", xlim=(lowest - 0.05, 1.05))
        axes.set_yticks(positions, names)
        axes.grid(axis="x", alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].invert_yaxis()
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False
    )
    return _png(figure)
