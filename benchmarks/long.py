"""A recording of hundreds of millions of events through the commands that read one."""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import timm

from sj_ottt.run.checkpoint import ModelInfo, write_model
from sj_ottt.run.sections import FrameOptions

SENSOR = (720, 1280)
_EVENTS_PER_US = 10
_PIECE = 1_000_000


def long(args: argparse.Namespace) -> list[dict]:
    """Seconds and peak memory of each command on one Prophesee DAT file of --events events."""
    n = args.events or 300_000_000
    with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
        root = Path(folder)
        recording = write_dat(root / "long.dat", n)
        write_labels(root / "labels.csv", recording.name, n // _EVENTS_PER_US)
        write_untrained(root / "run")
        commands = {
            "data info": ["data", "info", recording, "--out", root / "info"],
            "predict --window 100ms": ["predict", "--checkpoint", root / "run", recording],
            "data slice, 20 of every 200 ms": [
                *("data", "slice", recording, "--labels", root / "labels.csv"),
                *("--out", root / "set", "--window", "20ms", "--stride", "200ms"),
                *("--test-by", "time"),
            ],
        }
        rows = []
        for name, argv in commands.items():
            seconds, on_cpu, peak = measured([str(word) for word in argv])
            rows.append(
                {
                    "command": name,
                    "events": f"{n:,}",
                    "seconds": f"{seconds:.0f}",
                    "CPU seconds": f"{on_cpu:.0f}",
                    "peak MB": f"{peak / 1e6:.0f}",
                    "without events MB": f"{measured(['--version'])[2] / 1e6:.0f}",
                }
            )
    return rows


def measured(argv: list[str]) -> tuple[float, float, int]:
    """Run the command in a process of its own; return seconds, those on a CPU, and peak bytes."""
    begin = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "sj_ottt", *argv], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"sj-ottt {' '.join(argv)}: failed")
    seconds = time.perf_counter() - begin
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def write_dat(path: Path, n: int) -> Path:
    """Write a DAT file of ``n`` events, 10 a µs, at random pixels."""
    rng = np.random.default_rng(0)
    with open(path, "wb") as file:
        height, width = SENSOR
        file.write(f"% Version 2\n% Width {width}\n% Height {height}\n".encode() + bytes([12, 8]))
        for begin in range(0, n, _PIECE):
            index = np.arange(begin, min(begin + _PIECE, n))
            words = np.empty((len(index), 2), "<u4")
            words[:, 0] = index // _EVENTS_PER_US
            x, y = rng.integers(0, width, len(index)), rng.integers(0, height, len(index))
            words[:, 1] = x | y << 14 | rng.integers(0, 2, len(index)) << 28
            file.write(words.tobytes())
    return path


def write_labels(path: Path, name: str, duration: int) -> None:
    """Label the first half ``a`` and the second half ``b``."""
    half = duration // 2
    path.write_text(f"file,start,end,label\n{name},0,{half},a\n{name},{half},,b\n")


def write_untrained(folder: Path) -> None:
    """Write a small model as a run leaves it, whose weights are those that it starts with."""
    folder.mkdir()
    model = timm.create_model("test_ottt_vgg", num_classes=2, in_chans=2)
    frames = FrameOptions(steps=4, size=(36, 64))
    info = ModelInfo(
        "test_ottt_vgg", ("a", "b"), 2, "nowhere", frames, sensor_size=SENSOR, window=100_000
    )
    write_model(folder / "best.safetensors", model.state_dict(), info)
