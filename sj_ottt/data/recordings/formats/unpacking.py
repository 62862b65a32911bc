"""Compressed pieces of files, unpacked within bounds: a few kB can hold gigabytes."""

import bz2
from collections.abc import Iterator
from types import ModuleType
from typing import Any

__all__ = ["LARGEST_PIECE", "unpack_bz2", "unpack_lz4", "unpack_zstd", "within_bounds"]

LARGEST_PIECE = 1 << 28
"""Bytes that a packet, a message or a chunk may hold; recorders write a few MB at most."""
_STEP = 1 << 22


def unpack_lz4(package: ModuleType, data: bytes) -> bytes:
    """Unpack a frame of LZ4.

    Args:
        package: ``lz4.frame``.
        data: The frame.

    Raises:
        ValueError: It is damaged, or unpacks to more than `LARGEST_PIECE`.
    """

    def pieces(data: bytes) -> Iterator[bytes]:
        decoder = package.LZ4FrameDecompressor()
        while not decoder.eof:
            piece = decoder.decompress(data, max_length=_STEP)
            if not piece and not decoder.eof:
                raise ValueError("its LZ4 frame is cut off")
            yield piece
            data = b""

    try:
        return within_bounds(pieces(data))
    except RuntimeError as error:
        raise ValueError(" ".join(str(error).split())) from error


def unpack_zstd(package: ModuleType, decoder: Any, data: bytes) -> bytes:
    """Unpack a frame of Zstandard.

    Args:
        package: ``zstandard``.
        decoder: Its decompressor.
        data: The frame.

    Raises:
        ValueError: As `unpack_lz4`.
    """
    try:
        if 0 <= package.frame_content_size(data) <= _STEP:
            return decoder.decompress(data)
        reader = decoder.stream_reader(data)
        return within_bounds(iter(lambda: reader.read(_STEP), b""))
    except package.ZstdError as error:
        raise ValueError(" ".join(str(error).split())) from error


def unpack_bz2(data: bytes) -> bytes:
    """Unpack streams of bzip2, one behind the other.

    Raises:
        ValueError: As `unpack_lz4`.
    """

    def pieces(data: bytes) -> Iterator[bytes]:
        while data:
            decoder = bz2.BZ2Decompressor()
            while not decoder.eof:
                if decoder.needs_input and not data:
                    raise ValueError("its bzip2 stream is cut off")
                yield decoder.decompress(data, _STEP)
                data = b""
            data = decoder.unused_data

    try:
        return within_bounds(pieces(data))
    except OSError as error:
        raise ValueError(str(error)) from error


def within_bounds(pieces: Iterator[bytes]) -> bytes:
    """Join pieces of bytes.

    Raises:
        ValueError: They are more than `LARGEST_PIECE`.
    """
    joined = bytearray()
    for piece in pieces:
        joined += piece
        if len(joined) > LARGEST_PIECE:
            raise ValueError(f"it unpacks to more than {LARGEST_PIECE >> 20} MiB")
    return bytes(joined)
