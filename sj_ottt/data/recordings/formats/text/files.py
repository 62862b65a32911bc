"""Files of text: plain, in a zip archive or compressed by gzip."""

import contextlib
import gzip
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import numpy as np

from sj_ottt.data.recordings.formats.columns import NAME_THEM, meaning
from sj_ottt.data.recordings.formats.common import cut_off, reason
from sj_ottt.data.recordings.formats.text.head import Head, is_value, split, split_names
from sj_ottt.data.recordings.formats.text.stream import LONGEST_LINE, TextStream
from sj_ottt.data.recordings.source import ReadOptions, Source
from sj_ottt.errors import InputError

_PIECE = 1 << 21
_SNIFFED = 4096
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_NO_TEXT = bytes(set(range(32)) - set(b"\t\n\r\f"))
# What zipfile and gzip raise, some of it where they take damaged bytes for names or places.
_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    gzip.BadGzipFile,
    RuntimeError,
    NotImplementedError,
    ValueError,
    OverflowError,
    struct.error,
)

_Opened = contextlib.AbstractContextManager[IO[bytes]]


def sniff(head: bytes) -> bool:
    """Recognize text whose first line is numbers or names of columns."""
    if head.startswith(_UTF16):
        return True
    if len(head.translate(None, _NO_TEXT)) < len(head):
        return False
    lines = head.decode("utf-8", errors="replace").lstrip("\ufeff").split("\n")
    if len(head) and all(line.startswith("#") for line in lines) and lines[0][1:2] != "!":
        return True  # a long comment
    for line in lines:
        if line.strip() and line.lstrip()[0] not in "#%":
            cells, _ = split(line)
            names = {what[0] for name in split_names(line) if (what := meaning(name))}
            return (len(cells) > 1 and all(map(is_value, cells))) or len(names & set("txyp")) > 2
    return False


def sniff_zipped(head: bytes) -> bool:
    """Recognize a zip archive, or a file compressed by gzip."""
    return head.startswith((b"PK\3\4", b"PK\5\6", b"\x1f\x8b"))


def stream(path: Path, options: ReadOptions) -> Source:
    """Read events from text, piece by piece."""
    return _source(path, options, lambda: open(path, "rb"), path.stat().st_size)


def stream_zipped(path: Path, options: ReadOptions) -> Source:
    """Read events from the text in a zip archive (one of them, or that of events) or a gzip."""
    with open(path, "rb") as file:
        is_gzip = file.read(2) == b"\x1f\x8b"
    try:
        if is_gzip:
            return _source(path, options, lambda: gzip.open(path, "rb"), None)  # type: ignore
        with zipfile.ZipFile(path) as archive:
            member = _member(archive, path)
        return _source(path, options, lambda: _open_member(path, member), member.file_size)
    except InputError:
        raise
    except (*_DAMAGED, EOFError) as error:
        raise _damaged(path, error) from error


def _member(archive: zipfile.ZipFile, path: Path) -> zipfile.ZipInfo:
    """Return the one text in an archive, or the one of events."""
    texts = [
        member
        for member in archive.infolist()
        if member.filename.lower().endswith((".txt", ".csv"))
        and not member.filename.startswith("__MACOSX/")
    ]
    named = [member for member in texts if "event" in member.filename.lower().rpartition("/")[2]]
    if len(named or texts) != 1:
        found = ", ".join(member.filename for member in (texts or archive.infolist())[:5])
        raise InputError(
            f"{path}: a zip archive without one text of events (it holds {found or 'nothing'}); "
            "unpack it, and name the recording in it"
        )
    return (named or texts)[0]


@contextlib.contextmanager
def _open_member(path: Path, member: zipfile.ZipInfo) -> Iterator[IO[bytes]]:
    with zipfile.ZipFile(path) as archive, archive.open(member) as file:
        yield file


def _source(
    path: Path, options: ReadOptions, opened: Callable[[], _Opened], size: int | None
) -> Source:
    head, line = Head(path), b""
    # Where the data end early, that is said on the way.
    with opened() as file, contextlib.suppress(EOFError):
        if not sniff(file.peek(_SNIFFED)[:_SNIFFED]):  # type: ignore[attr-defined]
            raise InputError(f"{path}: holds no text of events; unpack it, or {NAME_THEM}")
        while (line := file.readline(LONGEST_LINE)) and head.take(line):
            pass
    expected = size // len(line) if size and line else None
    return Source(str(path), _events(path, options, opened), head.sensor_size, expected)


def _events(
    path: Path, options: ReadOptions, opened: Callable[[], _Opened]
) -> Iterator[np.ndarray]:
    text = TextStream(str(path), options)
    try:
        with opened() as file:
            whole = True
            while whole and (piece := _read(file)):
                data, whole = piece
                yield text.feed(data)
        if not whole:
            cut_off(path, options, "the compressed data end early")
    except InputError:
        raise
    except _DAMAGED as error:
        raise _damaged(path, error) from error
    yield text.feed(b"", last=True)


def _read(file: IO[bytes]) -> tuple[bytes, bool] | None:
    """Return the next piece, and whether the data behind it are there; None at the end."""
    parts: list[bytes] = []
    missing = _PIECE
    try:
        while missing and (part := file.read1(missing)):  # type: ignore[attr-defined]
            parts.append(part)
            missing -= len(part)
    except EOFError:
        return b"".join(parts), False
    return (b"".join(parts), True) if parts else None


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(
        f"{path}: truncated or damaged archive ({reason(error)}); copy or pack it again"
    )
