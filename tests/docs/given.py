"""What a page's reader has in the current folder: recordings, images, a trained run.

A page is given what it names and does not make itself.
"""

import contextlib
import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from sj_ottt.cli.main import main
from tests.helpers import write_recordings
from tests.inference.recordings import WINDOW, band, long_recording
from tests.packed_images import pack
from tests.recording_files import evt3


def my_recordings(path: Path) -> None:
    """A folder a class, in train/ and test/."""
    write_recordings(path, {"train": 4, "test": 1})


def digits(path: Path) -> None:
    """Recordings of ten classes, in the place of those that take minutes to simulate."""
    write_recordings(path, {"train": 2, "test": 1}, tuple("0123456789"))


def recordings(path: Path) -> None:
    """Files of a camera in which an object is left, then right, of 400 ms each."""
    path.mkdir(parents=True)
    rows = ["file,start,end,label,session"]
    for i, name in enumerate(("A0", "A1", "B0", "B1")):
        (path / f"{name}.raw").write_bytes(_raw((0, 0, 0, 0, 2, 2, 2, 2), seed=i))
        rows += [f"{name}.raw,0ms,400ms,left,{name[0]}", f"{name}.raw,400ms,800ms,right,{name[0]}"]
    (path / "labels.csv").write_text("\n".join(rows) + "\n")


def session(path: Path) -> None:
    """Recordings of another session, with their labels."""
    recordings(path)
    rows = ["file,start,end,label"]
    for name in ("A0", "B0"):
        (path / f"{name}.raw").rename(path / f"{'C0' if name == 'A0' else 'C1'}.raw")
    for name in ("A1", "B1"):
        (path / f"{name}.raw").unlink()
    rows += [f"C{i}.raw,0ms,400ms,left\nC{i}.raw,400ms,800ms,right" for i in (0, 1)]
    (path / "labels.csv").write_text("\n".join(rows) + "\n")


def new_recording(path: Path) -> None:
    """One more file of that camera."""
    path.write_bytes(_raw((2, 2, 0, 0), seed=9))


def _raw(labels: tuple[int, ...], seed: int) -> bytes:
    parts = [
        band(label, 400, seed=100 * seed + i, begin=i * WINDOW) for i, label in enumerate(labels)
    ]
    header = b"% geometry 1280x720\n"
    return evt3(np.concatenate(parts).tolist()).replace(header, b"% geometry 16x16\n")


def images(path: Path) -> None:
    """A folder of images a class."""
    rng = np.random.default_rng(0)
    for name in ("apple", "pear"):
        (path / name).mkdir(parents=True)
        for i in range(5):
            pixels = rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path / name / f"{i}.png")


def growing(path: Path) -> None:
    """A text file of events."""
    from tests.inference.recordings import as_text

    path.write_bytes(as_text(long_recording((0, 1, 2))))


def run(path: Path) -> None:
    """A run on the recordings of `my_recordings`."""
    data = path.parent / "its_recordings"
    my_recordings(data)
    arguments = ["train", "--data", str(data), "--out", str(path), "--epochs", "1"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert main([*arguments, "--device", "cpu", "--steps", "2"]) == 0


def two_classes(path: Path) -> None:
    """A run that knows left and right."""
    data = path.parent / "its_samples"
    write_recordings(data, {"train": 6, "test": 2}, ("left", "right"))
    arguments = ["train", "--data", str(data), "--out", str(path), "--epochs", "1"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert main([*arguments, "--device", "cpu"]) == 0


GIVEN: dict[str, Callable[[Path], None]] = {
    "MY_RECORDINGS": my_recordings,
    "ndigits": digits,
    "recordings": recordings,
    "session_C": session,
    "NEW.raw": new_recording,
    "images": images,
    "fashion_mnist.npz": lambda path: pack(path, size=(28, 28)),
    "events.csv": growing,
    "runs/mine": run,
    "runs/base": two_classes,
}
"""Name → what makes it."""


def give(page: str, folder: Path, store: Path) -> None:
    """Put into a folder what a page names and does not make.

    Args:
        page: Its text.
        folder: The current folder of its commands.
        store: Keeps what was made before.
    """
    for name, make in GIVEN.items():
        if name not in page or f"--out {name}" in page:
            continue
        kept = store / name
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            make(kept)
        target = folder / ("MY_DIGITS" if name == "ndigits" else name)
        target.parent.mkdir(parents=True, exist_ok=True)
        if kept.is_dir():
            shutil.copytree(kept, target, dirs_exist_ok=True)
        else:
            shutil.copy(kept, target)
