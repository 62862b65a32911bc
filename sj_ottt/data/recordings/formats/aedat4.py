"""iniVation's AEDAT 4.0, decoded by the package ``aedat``.

The file is the line ``#!AER-DAT4.0``, a size-prefixed flatbuffer IOHeader (compression, position of
the index behind the data, XML that describes the streams), then packets: stream and length, i32
each, and a flatbuffer of that many bytes, compressed or not. ``aedat`` trusts the header and the
lengths, and ends the process where they are wrong, so both are checked here first. Frames, motion
samples and triggers are left out.
"""

import struct
from pathlib import Path

import numpy as np

from sj_ottt.data.recordings.events import EVENT_DTYPE, FIELDS, Recording, pack_events
from sj_ottt.data.recordings.formats.common import at_once, optional, reason
from sj_ottt.errors import InputError

MAGIC = b"#!AER-DAT4.0\r\n"
_COMPRESSIONS = range(5)  # none, LZ4, LZ4 high, Zstandard, Zstandard high
_SHORTEST_PACKET = 16  # a size prefix, an offset, an identifier and the table's own offset


def sniff(head: bytes) -> bool:
    """Recognize an AEDAT 4 file."""
    return head.startswith(b"#!AER-DAT4")


def read(path: Path) -> Recording:
    """Read the events of an AEDAT 4.0 recording that holds one stream of events."""
    aedat = optional("aedat", path)
    try:
        _check_container(path)
        decoder = aedat.Decoder(str(path))
        streams = [s for s in decoder.id_to_stream().values() if s["type"] == "events"]
        packets = [packet["events"] for packet in decoder if "events" in packet]
    except (struct.error, ValueError, RuntimeError) as error:
        raise _damaged(path, error) from error
    except BaseException as error:
        # What Rust calls a panic is no Exception in Python.
        if type(error).__name__ != "PanicException":
            raise
        raise _damaged(path, error) from error
    if len(streams) != 1:
        raise InputError(
            f"{path}: holds {len(streams)} streams of events; export one camera's events to a file "
            "of its own"
        )
    events = np.concatenate(packets) if packets else np.empty(0, EVENT_DTYPE)
    size = streams[0]["height"], streams[0]["width"]
    return Recording(
        pack_events({name: events[name] for name in FIELDS}, path),
        size if min(size) > 0 else None,
    )


def _damaged(path: Path, error: BaseException) -> InputError:
    return InputError(
        f"{path}: truncated or damaged AEDAT 4 file ({reason(error)}); copy or export it again"
    )


def _check_container(path: Path) -> None:
    """Raise `ValueError` or `struct.error` unless header and packets fill the file exactly."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise ValueError("wrong first line")
        (length,) = struct.unpack("<I", file.read(4))
        position = len(MAGIC) + 4 + length
        if position > size:
            raise ValueError(f"a header of {length} bytes in a file of {size}")
        compression, end = _check_header(file.read(length))
        shortest = _SHORTEST_PACKET if compression == 0 else 0
        end = size if end == -1 else end
        while position < end <= size:
            file.seek(position)
            _, length = struct.unpack("<iI", file.read(8))
            if length < shortest:
                raise ValueError(f"a packet of {length} bytes at byte {position}")
            position += 8 + length
    if position != end:
        raise ValueError(f"packets end at byte {position}, not at {end}")


def _check_header(header: bytes) -> tuple[int, int]:
    """Return the compression and the byte where the packets end (-1: with the file).

    Raises `ValueError` or `struct.error` where an offset of the flatbuffer points outside it.
    """
    (table,) = struct.unpack_from("<I", header)
    (back,) = struct.unpack_from("<i", header, table)
    vtable = table - back
    if not 0 <= vtable <= len(header) - 4:
        raise ValueError("header's table lies outside it")
    vtable_size, table_size = struct.unpack_from("<2H", header, vtable)
    n_fields = (vtable_size - 4) // 2
    if vtable_size % 2 or n_fields < 3 or vtable + vtable_size > len(header):
        raise ValueError("header lacks a field")
    offsets = struct.unpack_from(f"<{n_fields}H", header, vtable + 4)
    if max(offsets) > table_size or table + table_size > len(header):
        raise ValueError("header's fields lie outside its table")
    compression_at, end_at, text_at = offsets[:3]
    compression = struct.unpack_from("<i", header, table + compression_at)[0] * bool(compression_at)
    end = struct.unpack_from("<q", header, table + end_at)[0] if end_at else -1
    if compression not in _COMPRESSIONS or end < -1 or not text_at:
        raise ValueError(f"compression {compression}, packets up to {end}")
    text = table + text_at
    text += struct.unpack_from("<I", header, text)[0]
    (length,) = struct.unpack_from("<I", header, text)
    if text + 4 + length > len(header):
        raise ValueError("description reaches beyond the header")
    header[text + 4 : text + 4 + length].decode()
    return compression, end


stream = at_once(read)
