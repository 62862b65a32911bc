"""The result of a run as files: numbers, pictures, and what they were made with."""

import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sj_ottt.errors import InputError
from sj_ottt.run.checkpoint import write_file

__all__ = ["device_name", "read_result", "versions", "write_result"]

_PACKAGES = ("torch", "torchvision", "timm", "spikingjelly", "numpy")


def device_name(device: torch.device) -> str:
    """Return the name of a GPU, or how many threads run on what processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads, {platform.machine()}"


def versions() -> dict[str, str]:
    """Return the versions of Python, of this package and of those that numbers depend on."""
    import sj_ottt

    installed = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), "sj_ottt": sj_ottt.__version__, **installed}


def write_result(
    out: Path,
    result: Mapping[str, Any],
    examples: Sequence[np.ndarray],
    classes: Sequence[str],
    *,
    still: bool,
) -> None:
    """Write ``curves.png``, ``frames.png`` and, last, ``result.json``.

    Args:
        out: The run's folder.
        result: The result, in values that JSON can hold, with the run's ``history``.
        examples: A sample of each class: frames [T, 2, H, W], or still images [C, H, W].
        classes: Their names.
        still: Whether the examples are still images.

    Raises:
        InputError: The disk is full or not writable.
    """
    # matplotlib takes most of a second to import, and only the end of a run needs it.
    from sj_ottt import plots

    write_file(out / "curves.png", plots.curves(result["history"], result))
    draw = plots.images if still else plots.frames
    write_file(out / "frames.png", draw(examples, classes))
    text = json.dumps(result, indent=2, allow_nan=False) + "\n"
    write_file(out / "result.json", text.encode())


def read_result(out: Path) -> dict[str, Any] | None:
    """Return the result that a finished run left in its folder; None where there is none.

    Raises:
        InputError: The file is damaged.
    """
    file = out / "result.json"
    try:
        result = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        if not isinstance(result, dict):
            raise ValueError("no object")
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is damaged; remove it, then continue with --resume") from error
    return result or None
