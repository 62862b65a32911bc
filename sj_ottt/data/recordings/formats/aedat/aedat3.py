"""cAER's AEDAT 3.1, as DVS128 Gesture is published in.

Lines that begin with ``#`` (format, and a numbered source for each camera), then packets: a header
of 28 bytes (type, source, size of an event, place of the time in it, overflows of the clock, and
how many events are kept, used and valid; little-endian) and the events. An event of polarity holds
a u32 (bit 0: valid, bit 1: polarity, bits 2-16: y, bits 17-31: x) and the time's lower 31 bits; its
upper ones are the header's overflows. Events that are not valid, and packets of other types, are
left out. x counts from the left and y from the top.

Read here, since SpikingJelly's reader takes single events, into lists of Python's numbers.
"""

import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from sj_ottt.data.recordings.events import EVENT_DTYPE
from sj_ottt.data.recordings.formats import common
from sj_ottt.data.recordings.formats.aedat import chips
from sj_ottt.data.recordings.formats.aedat.header import Header, read_header
from sj_ottt.data.recordings.source import ReadOptions, Source
from sj_ottt.errors import InputError

_PACKET = struct.Struct("<2h6i")
_POLARITY = 1
_EVENT = np.dtype([("address", "<u4"), ("t", "<u4")])


def sniff(head: bytes) -> bool:
    """Recognize an AEDAT 3.1 file."""
    return head.startswith(b"#!AER-DAT3.1")


def stream(path: Path, options: ReadOptions) -> Source:
    """Read the polarity events of one camera; of several, the options choose.

    Raises:
        InputError: The events are compressed, or the camera is not chosen or not there.
    """
    header = read_header(path)
    if (form := header.fields.get("format", "RAW")) != "RAW":
        raise InputError(
            f"{path}: AEDAT 3.1 in the format {form}, of which only RAW is read; convert it with DV"
        )
    cameras = _cameras(header)
    wanted, size = None, None
    if cameras:
        number = common.choose_camera(path, options, [name for _, name in cameras])
        chip = chips.find_in(cameras[number][1])
        wanted, size = cameras[number][0], chip and chip.sensor_size
    if len(cameras) < 2:
        wanted = None  # some writers number the source in the packets otherwise
    n = max(path.stat().st_size - header.offset, 0) // _EVENT.itemsize
    return Source(str(path), common.batched(_events(path, header, wanted, options)), size, n)


def _cameras(header: Header) -> list[tuple[int, str]]:
    """Return number and name of each source, as ``#Source 1: DVS128`` states them."""
    found = (
        (re.fullmatch(r"source (\d{1,5})", key), value) for key, value in header.fields.items()
    )
    return sorted((int(match[1]), value) for match, value in found if match)


def _events(
    path: Path, header: Header, wanted: int | None, options: ReadOptions
) -> Iterator[np.ndarray]:
    """Yield the events of one source; without ``wanted``, there may be only one."""
    size, position, single = path.stat().st_size, header.offset, wanted is None
    with open(path, "rb") as file:
        file.seek(position)
        while head := file.read(_PACKET.size):
            if len(head) < _PACKET.size:
                common.cut_off(path, options, f"its last packet has only {len(head)} bytes")
                return
            kind, source, event_size, _, overflows, capacity, number, _ = _PACKET.unpack(head)
            ours = kind == _POLARITY
            if (
                not 0 <= number <= capacity
                or event_size < 0
                or (ours and (event_size != _EVENT.itemsize or overflows < 0))
            ):
                raise InputError(
                    f"{path}: damaged: no packet of events at byte {position}; copy it again"
                )
            after = position + _PACKET.size + capacity * event_size
            if ours:
                wanted = source if wanted is None else wanted
                if single and source != wanted:
                    raise InputError(
                        f"{path}: holds the events of the sources {wanted} and {source}, but its "
                        "header names one camera; export one camera's events to a file of its own"
                    )
                if source == wanted:
                    yield from _polarity(file, number, overflows)
            if after > size:
                lost = f"its last packet ends {after - size} bytes behind the end of the file"
                common.cut_off(path, options, lost)
                return
            position = after
            file.seek(position)


def _polarity(file: BinaryIO, number: int, overflows: int) -> Iterator[np.ndarray]:
    """Read a packet's events, or as many as there are, in pieces of a block at most."""
    while number > 0:
        data = file.read(min(number, common.BLOCK) * _EVENT.itemsize)
        pairs = np.frombuffer(data, _EVENT, len(data) // _EVENT.itemsize)
        number = number - len(pairs) if len(pairs) else 0
        pairs = pairs[pairs["address"] & 1 == 1]
        events = np.empty(len(pairs), EVENT_DTYPE)
        events["t"] = pairs["t"] & np.uint32(0x7FFF_FFFF)
        events["t"] += overflows << 31
        events["x"] = pairs["address"] >> 17
        events["y"] = pairs["address"] >> 2 & 0x7FFF
        events["p"] = pairs["address"] >> 1 & 1
        yield events
