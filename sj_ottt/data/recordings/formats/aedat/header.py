"""The text at the head of AEDAT files before version 4."""

import re
from pathlib import Path
from typing import NamedTuple

from sj_ottt.errors import InputError

_TEXT = re.compile(rb"#[\t\x20-\x7e\x80-\xff]*\r?\n")
_END = re.compile(rb"#(!END-HEADER| ?End of ASCII Header)\s*", re.IGNORECASE)
_LONGEST_LINE = 1 << 16
_LONGEST = 1 << 22  # jAER writes its preferences there, some 100 kB


class Header(NamedTuple):
    """What the lines at the head of a file say.

    Attributes:
        version: As ``"2.0"``.
        fields: The values of lines like ``# AEChip: DVS128`` by their key in lower case; the first
            where there are several.
        offset: Where the events begin, in bytes.
    """

    version: str
    fields: dict[str, str]
    offset: int


def read_header(path: Path) -> Header:
    """Read the lines that begin with ``#``, up to the first that is no text or ends the header.

    An event may begin with the same byte as a line, but does not go on as text.

    Raises:
        InputError: The file ends within the header.
    """
    fields: dict[str, str] = {}
    version, offset = "", 0
    with open(path, "rb") as file:
        while offset < _LONGEST:
            line = file.readline(_LONGEST_LINE)
            if not _TEXT.fullmatch(line):
                if _TEXT.fullmatch(line + b"\n") and not file.read(1):
                    raise InputError(f"{path}: is cut off within its header; copy it again")
                break
            offset += len(line)
            text = line[1:].decode("latin-1").strip()
            if not version:
                version = text.removeprefix("!AER-DAT")
            key, colon, value = text.partition(":")
            if colon:
                fields.setdefault(key.strip().lower(), value.strip())
            if _END.fullmatch(line):
                break
    return Header(version, fields, offset)
