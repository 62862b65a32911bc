"""How fast recordings of each file format are read, and in how much memory."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.decoders import DECODERS
from benchmarks.recordings import FORMATS, random_events

_PROPHESEE = ("faery", "faery by blocks", "expelliarmus", "expelliarmus by blocks")
# Which decoders by others read a format, besides ours.
RIVALS = {
    "evt2": (*_PROPHESEE, "evlib"),
    "evt21_rows": ("evlib",),
    "evt3": (*_PROPHESEE, "evt3", "evlib"),
    "evt3_rows": (*_PROPHESEE, "evt3", "evlib"),
    "dat": _PROPHESEE,
    "es": ("faery", "faery by blocks", "event_stream", "event_stream by blocks"),
    "aedat4": ("faery", "faery by blocks", "dv-processing", "aedat"),
    "hdf5": ("h5py",),
    "npz": ("numpy",),
    "npy": ("numpy",),
    "csv": ("faery", "faery by blocks", "numpy", "evlib"),
}
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "RAYON_NUM_THREADS", "POLARS_MAX_THREADS"), "1")
_DECODER_SCRIPT = Path(__file__).parent / "decoders.py"


def reading(args: argparse.Namespace) -> list[dict]:
    """Millions of events a second of one core, and peak bytes an event; each in its own process.

    All events in one array, or none kept ("by blocks"). The ratio is to the fastest decoder by
    others that does the same; it is above 1 where ours is slower. Decoders by others are run by the
    Python --rivals; those that it lacks are left out.
    """
    formats = args.formats or list(FORMATS)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in formats:
            ending, write, fewer = FORMATS[name]
            path = Path(folder) / f"{name}{ending}"
            write(random_events((args.events or 10_000_000) // fewer), path)
            rows += _rows(name, path, args)
            path.unlink()
    return rows


def _rows(name: str, path: Path, args: argparse.Namespace) -> list[dict]:
    decoders = ["sj_ottt", "sj_ottt by blocks", *RIVALS.get(name, ())]
    runs: dict[str, list[dict]] = {decoder: [] for decoder in decoders}
    for _ in range(args.repeats):
        for decoder in decoders:  # in turn, so that a busy machine slows all of them alike
            runs[decoder] += _run(decoder, path, args.rivals)
    if not runs["sj_ottt"]:
        return []
    n = runs["sj_ottt"][0]["events"]
    seconds, wrong = {}, {}
    for decoder, results in runs.items():
        if results and results[0]["events"] == n:
            seconds[decoder] = statistics.median(result["seconds"] for result in results)
        elif results:
            wrong[decoder] = results[0]["events"]
    rows = []
    for decoder, s in seconds.items():
        others = (
            seconds[other]
            for other in seconds
            if not other.startswith("sj_ottt")
            and other.endswith("by blocks") == decoder.endswith("by blocks")
        )
        fastest = min(others, default=None)
        peak = max(result["bytes"] for result in runs[decoder])
        rows.append(
            {
                "format": name,
                "decoder": decoder,
                "events": n,
                "million/s": f"{n / s / 1e6:.1f}",
                "time to the fastest other's": f"{s / fastest:.2f}" if fastest else "-",
                "bytes/event": f"{peak / n:.1f}",
            }
        )
    for decoder, other_n in wrong.items():
        print(f"{name}: {decoder} reads {other_n} events for {n}, and is left out")
    return rows


def _run(decoder: str, path: Path, rivals: str | None) -> list[dict]:
    """Return what one run found; nothing where the decoder is missing or fails."""
    ours = DECODERS[decoder][0] == "sj_ottt"
    python = sys.executable if ours or rivals is None else rivals
    done = subprocess.run(
        [python, str(_DECODER_SCRIPT), decoder, str(path)],
        capture_output=True,
        text=True,
        env={**os.environ, **_ONE_THREAD, "PYTHONPATH": os.getcwd() if ours else ""},
    )
    if done.returncode:
        print(f"{path.name}: {decoder} fails: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return [json.loads(line) for line in lines]
