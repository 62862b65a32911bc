"""Prophesee's files: DAT, and RAW with the encodings EVT 2.0 and EVT 3.0.

All begin with text lines ``% keyword value``, which may state the sensor's size.

- DAT: a byte for the type of event and one for its size, then little-endian pairs of u32: µs, and
  x in bits 0-13, y in bits 14-27, polarity in bit 28. The 32-bit clock is unwrapped.
- EVT2: little-endian u32 words with their type in bits 28-31: 0 OFF, 1 ON (time in bits 22-27, x in
  bits 11-21, y in bits 0-10), 8 the time's upper 28 bits, which are unwrapped. Events before the
  first such word have no time and are left out; words of other types are passed over.
- EVT3: little-endian words of 16 bits, decoded by the package ``evt3``, which leaves out events
  before the first time, and unwraps the 24-bit clock where it falls from the last 45 ms of its
  16.8 s into the first; any other step back stays.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sj_ottt.data.recordings.events import Recording, pack_events
from sj_ottt.data.recordings.formats.common import (
    at_once,
    fixed_records,
    optional,
    reason,
    text_header,
    unwrap,
)
from sj_ottt.errors import InputError

_DAT_CD_TYPES = (0, 12)
_ENCODING = re.compile(rb"^% (?:evt |format )", re.MULTILINE)


def sniff_raw(head: bytes) -> bool:
    """Recognize a RAW file, whose header names the encoding."""
    return head.startswith(b"% ") and _ENCODING.search(head) is not None


def sniff_dat(head: bytes) -> bool:
    """Recognize a file with Prophesee's header; RAW files too, so ask `sniff_raw` first."""
    return head.startswith(b"% ")


def read_raw(path: Path) -> Recording:
    """Read a RAW file in EVT2 or EVT3; other encodings are refused."""
    fields, offset = _header(path)
    encoding = fields.get("format", "").partition(";")[0]
    encoding = encoding or "EVT" + fields.get("evt", "").removesuffix(".0").replace(".", "")
    readers = {"EVT2": _read_evt2, "EVT3": _read_evt3}
    if encoding not in readers or "endianness=big" in fields.get("format", ""):
        raise InputError(
            f"{path}: RAW in the encoding {fields.get('format') or encoding}, of which only "
            "little-endian EVT2 and EVT3 are read; convert it with Metavision to one of them or "
            "to DAT"
        )
    return Recording(readers[encoding](path, offset), _sensor_size(fields))


def read_dat(path: Path) -> Recording:
    """Read a DAT file of contrast (CD) events."""
    fields, offset = _header(path)
    with open(path, "rb") as file:
        file.seek(offset)
        kind_and_size = file.read(2)
    if len(kind_and_size) < 2 or kind_and_size[0] not in _DAT_CD_TYPES or kind_and_size[1] != 8:
        raise InputError(
            f"{path}: its header names no encoding, and no events of a DAT file (type 0 or 12, "
            "8 bytes) follow it; copy it again, or convert it with Metavision"
        )
    pairs = fixed_records(path, offset + 2, np.dtype([("t", "<u4"), ("address", "<u4")]), "event")
    address = pairs["address"]
    columns = {
        "t": unwrap(pairs["t"], 32),
        "x": address & 0x3FFF,
        "y": address >> 14 & 0x3FFF,
        "p": address >> 28 & 1,
    }
    return Recording(pack_events(columns, path), _sensor_size(fields))


def _read_evt2(path: Path, offset: int) -> np.ndarray:
    words = fixed_records(path, offset, np.dtype("<u4"), "word")
    kind = words >> 28
    is_time = kind == 8
    upper = unwrap(words[is_time] & 0x0FFF_FFFF, 28)
    n_times = np.cumsum(is_time)
    is_event = (kind <= 1) & (n_times > 0)
    words = words[is_event]
    columns = {
        "t": (upper[n_times[is_event] - 1] << 6) + (words >> 22 & 0x3F),
        "x": words >> 11 & 0x7FF,
        "y": words & 0x7FF,
        "p": words >> 28,
    }
    return pack_events(columns, path)


def _read_evt3(path: Path, offset: int) -> np.ndarray:
    evt3 = optional("evt3", path)
    words = fixed_records(path, offset, np.dtype("<u2"), "word")
    try:
        # Not decode_file: it takes a file of another ending for HDF5.
        events = evt3.decode_bytes(words.tobytes())
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{path}: truncated or damaged EVT3 file ({reason(error)}); copy it again"
        ) from error
    return pack_events({name: getattr(events, name) for name in "txyp"}, path)


def _header(path: Path) -> tuple[dict[str, str], int]:
    """Return the header's values by keyword in lower case, and the data's offset in bytes."""
    lines, offset = text_header(path, b"% ", b"% end")
    pairs = (line.partition(" ") for line in lines)
    return {keyword.lower(): value.strip() for keyword, _, value in pairs}, offset


def _sensor_size(fields: Mapping[str, str]) -> tuple[int, int] | None:
    """Return (height, width) as a header states it: ``geometry``, in ``format``, or in lines."""
    width, _, height = fields.get("geometry", "").partition("x")
    options = dict(part.partition("=")[::2] for part in fields.get("format", "").split(";"))
    stated = [(height, width)]
    stated += [(keys.get("height", ""), keys.get("width", "")) for keys in (options, fields)]
    for sides in stated:
        if all(re.fullmatch(r"[1-9]\d{0,4}", side) for side in sides):
            return int(sides[0]), int(sides[1])
    return None


stream_raw, stream_dat = at_once(read_raw), at_once(read_dat)
