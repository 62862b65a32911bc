"""jAER's AEDAT 2.0 and 1.0: lines that begin with ``#``, then big-endian pairs of address and µs.

Both are u32; in version 1.0 the address is u16. What an address holds depends on the camera
(`chips`). The header's line ``AEChip`` names it, or another (``HardwareInterface``). Where none
does, as in what the simulator v2e writes, the addresses tell: bits above 15 are set, and none below
10, by a DAVIS; all bits are among the lowest 16 by a DVS128. A DAVIS's size, without which its
mirrored rows and columns cannot be turned back, is then the user's ``sensor_size``, or assumed with
a warning. What cannot be told is refused.

Events come as the image is seen: x from the left, y from the top, p = 1 brighter. So jAER shows
them, and so AEDAT 4 has them of the same camera: rows and columns are turned back where they are
stored mirrored, and a DVS128's polarity bit, which is 0 for brighter. (SpikingJelly's reader of
CIFAR10-DVS exchanges x and y of that besides.) Image and motion samples and signals from outside
are left out. The 32-bit clock is unwrapped.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sj_ottt.data.recordings.events import EVENT_DTYPE
from sj_ottt.data.recordings.formats.aedat import chips
from sj_ottt.data.recordings.formats.aedat.header import Header, read_header
from sj_ottt.data.recordings.formats.common import Unwrap, assume, pieces, record_blocks
from sj_ottt.data.recordings.source import BLOCK, ReadOptions, Source
from sj_ottt.errors import InputError

_RECORDS = {
    "1.0": np.dtype([("address", ">u2"), ("t", ">u4")]),
    "2.0": np.dtype([("address", ">u4"), ("t", ">u4")]),
}
_OTHER_LINES = ("hardwareinterface", "device", "camera", "sensor", "chip", "source")
# (height, width) of what writes no AEChip: v2e the first two.
_ASSUMED_SIZES = ((180, 240), (260, 346), (480, 640))


def sniff(head: bytes) -> bool:
    """Recognize an AEDAT file; ask the other versions first."""
    return head.startswith(b"#!AER-DAT")


def stream(path: Path, options: ReadOptions) -> Source:
    """Read an AEDAT 2.0 or 1.0 recording.

    Raises:
        InputError: Another version, or a camera whose addresses are not known or cannot be told.
    """
    header = read_header(path)
    if header.version not in _RECORDS:
        raise InputError(
            f"{path}: AEDAT {header.version}, of which 1.0, 2.0, 3.1 and 4.0 are read; convert it"
        )
    record = _RECORDS[header.version]
    chip = _named_chip(path, header) or _chip_by_addresses(path, header, options)
    size = options.sensor_size or chip.sensor_size
    if chip.layout == chips.DVS128:
        size = chip.sensor_size  # its addresses end there, whatever the user says
    n = (path.stat().st_size - header.offset) // record.itemsize
    return Source(str(path), _events(path, header, chip, size, options), size, n)


def _named_chip(path: Path, header: Header) -> chips.Chip | None:
    if (name := header.fields.get("aechip", "")) and not (chip := chips.find(name)):
        raise InputError(
            f"{path}: AEDAT {header.version} of a {name}, whose addresses are not known; those of "
            f"{chips.KNOWN} are: convert it with jAER or DV"
        )
    if not name:
        texts = (header.fields[key] for key in _OTHER_LINES if key in header.fields)
        chip = next((found for text in texts if (found := chips.find_in(text))), None)
    if chip and header.version == "1.0" and chip.layout != chips.DVS128:
        raise InputError(
            f"{path}: AEDAT 1.0 has addresses of 16 bits, too few for the camera that its header "
            "names; correct the header"
        )
    return chip


def _chip_by_addresses(path: Path, header: Header, options: ReadOptions) -> chips.Chip:
    """Tell the camera where no line names it, from what all addresses have in common."""
    used = low = x = y = n = 0
    with open(path, "rb") as file:
        file.seek(header.offset)
        while len(pairs := np.fromfile(file, _RECORDS[header.version], BLOCK)):
            address = pairs["address"].astype(np.uint32)
            address = address[address & 0x8000_0000 == 0]
            used |= int(np.bitwise_or.reduce(address, initial=0))
            address = address[address & 0x400 == 0]
            n += len(address)
            low |= int(np.bitwise_or.reduce(address & 0x3FF, initial=0))
            x = max(x, int((address >> 12 & 0x3FF).max(initial=0)))
            y = max(y, int((address >> 22 & 0x1FF).max(initial=0)))
    said = options.sensor_size
    remedy = "state the sensor with --sensor-size HEIGHT WIDTH"
    if used < 1 << 16:
        chip = chips.Chip(chips.DVS128, (128, 128))
        if said != chip.sensor_size:
            what = "no line names the camera; a DVS128 (128 x 128) is assumed, whose addresses are"
            assume(path, options, f"{what} as short", remedy)
        return chip
    if n and low == 0:
        fits = [size for size in _ASSUMED_SIZES if y < size[0] and x < size[1]]
        if said or fits:
            if not said:
                what = "no line names the camera; the addresses are a DAVIS's, and the smallest"
                height, width = fits[0]
                assume(
                    path, options, f"{what} that holds all, {height} x {width}, is assumed", remedy
                )
            return chips.Chip(chips.DAVIS, said or fits[0])
    if used < 1 << 21 and said == (480, 640):
        return chips.Chip(chips.DVS640, said)
    raise InputError(
        f"{path}: no line names the camera, and its addresses tell none; write its name into the "
        "header (# AEChip: DAVIS346), or state --sensor-size 480 640 for a DVS640"
    )


def _events(
    path: Path,
    header: Header,
    chip: chips.Chip,
    size: tuple[int, int] | None,
    options: ReadOptions,
) -> Iterator[np.ndarray]:
    layout = chip.layout
    clock = Unwrap(32)
    before = 0
    blocks = record_blocks(path, header.offset, _RECORDS[header.version], "event", options)
    for pairs in (piece for block in blocks for piece in pieces(block)):
        address, t = pairs["address"].astype(np.uint32), clock(pairs["t"])
        is_event = address & layout.marks == 0
        if (i := _misfit(address, is_event, layout)) is not None:
            raise InputError(
                f"{path}: event {before + i} has the address {address[i]:#010x}, which its camera "
                "has not; correct the camera's name in the header, or copy the file again"
            )
        before += len(address)
        if not is_event.all():
            address, t = address[is_event], t[is_event]
        events = np.empty(len(t), EVENT_DTYPE)
        events["t"] = t
        for axis, name in enumerate(("y", "x")):
            shift, bits = getattr(layout, name)
            events[name] = address >> shift & ((1 << bits) - 1)
            if chip.mirrored[axis] and size:
                np.subtract(size[axis] - 1, events[name], out=events[name])
        events["p"] = (address >> layout.p & 1) == layout.on
        yield events


def _misfit(address: np.ndarray, is_event: np.ndarray, layout: chips.Layout) -> int | None:
    """Return the number of an address that cannot be of the layout, or None."""
    wrong = is_event & (address & layout.unused != 0)
    if layout == chips.DAVIS and not (address >> 16).any():
        wrong = address & 0x3FF != 0  # as of a DVS128, if all in a piece are as short
    return int(wrong.argmax()) if wrong.any() else None
