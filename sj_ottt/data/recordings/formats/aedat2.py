"""jAER's AEDAT 2.0: lines that begin with ``#``, then big-endian pairs of u32: address and µs.

The header's ``AEChip`` line names the camera; without it, a DVS128 is assumed. A DVS128's address
holds the polarity in bit 0, x in bits 1-7 and y in bits 8-14; bit 15 marks a signal that is no
pixel. A DAVIS's holds the polarity in bit 11, x in bits 12-21 and y in bits 22-30; bits 10 and 31
mark image and motion samples. What bears such a mark is left out. Addresses and polarity are taken
as stored: jAER shows the rows from the bottom, and a DVS128's columns mirrored and a set polarity
bit as OFF. The 32-bit clock is unwrapped.
"""

import re
from pathlib import Path

import numpy as np

from sj_ottt.data.recordings.events import Recording, pack_events
from sj_ottt.data.recordings.formats.common import at_once, fixed_records, text_header, unwrap
from sj_ottt.errors import InputError

_DAVIS_SIZES = {"240": (180, 240), "346": (260, 346), "640": (480, 640)}


def sniff(head: bytes) -> bool:
    """Recognize an AEDAT file that is not AEDAT 4."""
    return head.startswith(b"#!AER-DAT") and not head.startswith(b"#!AER-DAT4")


def read(path: Path) -> Recording:
    """Read an AEDAT 2.0 recording of a DVS128 or DAVIS; other versions and cameras are refused."""
    lines, offset = text_header(path, b"#", b"#End Of ASCII Header")
    version = lines[0].removeprefix("!AER-DAT")
    if version != "2.0":
        raise InputError(
            f"{path}: AEDAT {version}, of which only 2.0 and 4.0 are read; convert it, or read "
            "AEDAT 3 with spikingjelly.datasets and save it as npz"
        )
    chip = next((m[1] for m in (re.match(r"\s*AEChip:\s*(\S+)", line) for line in lines) if m), "")
    chip = chip.rpartition(".")[2] or "DVS128"
    pairs = fixed_records(path, offset, np.dtype([("address", ">u4"), ("t", ">u4")]), "event")
    address, t = pairs["address"].astype(np.uint32), unwrap(pairs["t"], 32)
    davis = re.search(r"davis.*?(240|346|640)", chip, re.IGNORECASE)
    if davis:
        is_event = address & 0x8000_0400 == 0
        x, y, p = address >> 12 & 0x3FF, address >> 22 & 0x1FF, address >> 11 & 1
        sensor_size = _DAVIS_SIZES[davis[1]]
    elif "DVS128" in chip.upper():
        is_event = address & 0x8000 == 0
        x, y, p = address >> 1 & 0x7F, address >> 8 & 0x7F, address & 1
        sensor_size = (128, 128)
    else:
        raise InputError(
            f"{path}: AEDAT 2.0 of a {chip}, whose addresses are not known; only DVS128 and DAVIS "
            "are: convert it with jAER or dv"
        )
    columns = {"t": t, "x": x, "y": y, "p": p}
    columns = {name: column[is_event] for name, column in columns.items()}
    return Recording(pack_events(columns, path), sensor_size)


stream = at_once(read)
