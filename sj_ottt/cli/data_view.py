"""`sj-ottt data view`: a page of one recording, to look at and to label it."""

import argparse
import base64
import hashlib
import json
from importlib import resources
from pathlib import Path

from sj_ottt._files import atomic_write
from sj_ottt.cli.reading import add_read_options, read_options
from sj_ottt.data.prepare.view import SHORTEST_US, View, view_recording
from sj_ottt.data.recordings.label_table import as_given, parse_duration
from sj_ottt.errors import InputError

_MOST_HOT = 1000  # pixels that a page marks


def page(view: View, path: Path) -> str:
    """Return a page of HTML that needs nothing else: its data, style and script are in it.

    Args:
        view: What it shows.
        path: The recording, which the page's table of labels names with its folder.
    """
    script = "\n".join(map(_part, ("frames.js", "labels.js", "page.js")))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    filled = _part("page.html")
    for name, part in (
        ("script_hash", f"sha256-{digest}"),  # nothing else can run, whatever a name holds
        ("style", _part("page.css")),
        ("script", script),
        ("data", _json(_data(view, path))),  # last, since a file's name may hold anything
    ):
        filled = filled.replace("{{" + name + "}}", part)
    return filled


def add(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``sj-ottt data view``."""
    parser.add_argument("recording", metavar="FILE", help="a recording")
    parser.add_argument(
        "--out", metavar="FILE.html", help="the page (default: data_info/NAME.html)"
    )
    parser.add_argument(
        "--start", default="0ms", metavar="TIME", help="show it from here on (default: %(default)s)"
    )
    parser.add_argument(
        "--length",
        metavar="TIME",
        help="show so much of it, as in 5s; a short part is shown in finer frames (default: all)",
    )
    add_read_options(parser)


def run(args: argparse.Namespace) -> None:
    """Write the page."""
    path = Path(args.recording)
    out = Path(args.out) if args.out else Path("data_info") / f"{path.stem}.html"
    if out.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--out {out}: give a file whose name ends in .html")
    view = view_recording(
        path,
        read_options(args),
        start=parse_duration(args.start, unit=True),
        length=None if args.length is None else parse_duration(args.length, unit=True),
    )
    data = page(view, path).encode()
    with atomic_write(out, durable=False, remedy="choose another one with --out") as file:
        file.write(data)
    height, width = view.sensor_size
    print(f"recording {view.events:,} events in {(view.end - view.start - 1) / 1e6:,.3f} s")
    print(f"sensor    {height} x {width} pixels (height x width)")
    frames = f"{view.step_us / 1000:g} ms"
    if view.factor > 1:
        frames += f", in squares of {view.factor} x {view.factor} pixels"
    if view.share > 1:
        frames += f", one in {view.share} events drawn"
    print(f"frames    {frames}")
    print(f"page      {out} ({len(data) / 1000:,.0f} kB): open it in a browser")


def _data(view: View, path: Path) -> dict:
    packed = {
        name: base64.b64encode(stream).decode() for name, stream in view.packed._asdict().items()
    }
    numbers = ("start", "end", "whole", "events", "on_events", "step_us", "factor", "share")
    return {
        "name": path.name,
        "stem": path.stem,
        # With its folder, which tells it from those of other folders.
        "file": "/".join(as_given(path).parts[-2:]),
        "sensor_size": view.sensor_size,
        **{name: getattr(view, name) for name in (*numbers, "frames")},
        "finest_us": SHORTEST_US,
        "n_hot": len(view.hot),
        "hot": view.hot[:_MOST_HOT].tolist(),
        "packed": packed,
    }


def _json(value: dict) -> str:
    """Write JSON that can stand in a script element of HTML."""
    text = json.dumps(value, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _part(name: str) -> str:
    return (resources.files("sj_ottt.cli") / "view" / name).read_text(encoding="utf-8")
