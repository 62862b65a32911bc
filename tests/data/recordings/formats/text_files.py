"""Texts of events as tools write them, and damaged ones' intact origins."""

import gzip
import io
import zipfile

import numpy as np

from tests.data.recordings.damage import Sample
from tests.recording_files import sample_events


def lines(events: np.ndarray, form: str, **also) -> str:
    """A line ``form`` of each event, with t, x, y, p, its number i and s, the time in seconds."""
    rows = events.tolist()
    return "".join(
        form.format(t=t, x=x, y=y, p=p, i=i, s=t / 1e6, **also) + "\n"
        for i, (t, x, y, p) in enumerate(rows)
    )


def in_zip(*members: tuple[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return file.getvalue()


def _text(form: str, head: str = "") -> bytes:
    return (head + lines(sample_events(120), form)).encode()


def _zipped() -> bytes:
    return in_zip(("set/calib.txt", b"1 2 3\n"), ("set/events.txt", _text("{s:.9f} {x} {y} {p}")))


SAMPLES = {
    "text": Sample(".csv", lambda: _text("{t},{x},{y},{p}", "t,x,y,p\n"), 1.0),
    "text_seconds": Sample(".txt", lambda: _text("{s:.9f} {x} {y} {p}"), 1.0),
    "text_real": Sample(".txt", lambda: _text("{x:.18e} {y:.18e} {t:.18e} {p:.18e}"), 1.0),
    "text_words": Sample(".csv", lambda: _text('"{i}",{t},{x},{y},True', ",t,x,y,on\n"), 1.0),
    "text_zip": Sample(".zip", _zipped, 600.0),
    "text_gz": Sample(".gz", lambda: gzip.compress(_text("{t},{x},{y},{p}"), mtime=0), 600.0),
}
