"""MATLAB's files, written by SciPy."""

import io

import numpy as np
import scipy.io

from tests.data.recordings.damage import Sample
from tests.data.recordings.formats.npz_files import rows
from tests.recording_files import sample_events


def mat(pack: bool = True, **variables) -> bytes:
    file = io.BytesIO()
    scipy.io.savemat(file, variables, do_compression=pack)
    return file.getvalue()


def columns(events: np.ndarray, names="ts x y p", first: int = 0, kind=float) -> dict:
    return {
        name: (events[field] + (0 if field == "t" else first)).astype(kind)[:, None]
        for name, field in zip(names.split(), "txyp", strict=True)
    }


def big_endian(data: bytes) -> bytes:
    """The vectors, structures apart, of an unpacked file in the other order of bytes."""
    out, at = bytearray(data[:124] + b"\1\0MI"), 128

    def words(first: int, n: int) -> bytes:
        return np.frombuffer(data, "<u4", n, first).byteswap().tobytes()

    while at < len(data):
        end = at + 8 + int(np.frombuffer(data, "<u4", 1, at + 4)[0])
        out += words(at, 2) + words(at + 8, 4) + words(at + 24, 4)  # flags, sides
        at += 40
        length = int(np.frombuffer(data, "<u4", 1, at)[0]) >> 16
        assert 0 < length <= 4  # names in the short form
        out += words(at, 1) + data[at + 4 : at + 8]
        out += words(at + 8, 2)
        n = int(np.frombuffer(data, "<u4", 1, at + 12)[0])
        out += np.frombuffer(data, "<f8", n // 8, at + 16).byteswap().tobytes()
        at = end
    return bytes(out)


SAMPLES = {
    "mat": Sample(".mat", lambda: mat(TD=columns(sample_events(120), first=1)), 80.0),
    "mat_plain": Sample(".mat", lambda: mat(False, **columns(sample_events(120))), 1.0),
    "mat_rows": Sample(".mat", lambda: mat(events=rows(sample_events(120), "xytp", "f8")), 80.0),
}
