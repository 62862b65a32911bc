"""The text lines at the head of Prophesee's files: the encoding, and the sensor's size."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

_MOST_LINES = 1 << 10
_LONGEST_LINE = 1 << 12
# A line of the header holds no control characters: a file without a last line "% end" may go on
# with bytes that begin as one does.
_LINE = re.compile(rb"% [^\x00-\x08\x0a-\x1f\x7f]*\r?\n")
_SIDE = re.compile(r"[1-9]\d{0,4}")

_VGA, _HD, _GENX320 = (480, 640), (720, 1280), (320, 320)

# The camera's number in the line system_ID, as Prophesee's OpenEB knows it; with 128 added, behind
# the bridge of an evaluation kit.
_SENSORS: Mapping[tuple[int, int], frozenset[int]] = {
    # Gen 2, 3 and 3.1; in the last line IMX637 and IMX647.
    _VGA: frozenset(
        (
            *(0x14, 0x15, 0x17, 0x19, 0x1C, 0x1D, 0x21, 0x22, 0x23, 0x28, 0x29),
            *(0x97, 0x99, 0xA1, 0xA2),
            *(0x34, 0x36),
        )
    ),
    # Gen 4 and 4.1; in the last line IMX636 and IMX646.
    _HD: frozenset(
        (
            *(0x1A, 0x1E, 0x1F, 0x20, 0x27, 0x2E, 0x30),
            0x9A,
            *(0x31, 0x32, 0x35, 0x3A),
        )
    ),
    _GENX320: frozenset((0x40,)),
}
# Where no line names the encoding, these cameras' files are EVT 3.0, and those of the others with
# such sensors EVT 2.0.
_WRITE_EVT3 = frozenset((0x1E, 0x20, 0x28, 0x2E, 0x30, 0x31, 0x32, 0x34, 0x35, 0x36, 0x3A))
# The same by the name of the camera's plugin, and by the sensor's generation.
_PLUGINS = (
    (re.compile(r"gen31?_|imx6[34]7"), _VGA),
    (re.compile(r"gen41?_|imx6[34]6"), _HD),
    (re.compile(r"genx320"), _GENX320),
)
_GENERATIONS = {"3.0": _VGA, "3.1": _VGA, "4.0": _HD, "4.1": _HD, "320.0": _GENX320}


class Header(NamedTuple):
    """What a header says.

    Attributes:
        fields: Its values by keyword in lower case.
        offset: Where the data begin, in bytes.
    """

    fields: dict[str, str]
    offset: int

    @property
    def options(self) -> dict[str, str]:
        """What the line ``format`` says behind the encoding's name."""
        pairs = (part.partition("=") for part in self.fields.get("format", "").split(";")[1:])
        return {key.strip().lower(): value.strip() for key, _, value in pairs}

    @property
    def encoding(self) -> str:
        """The encoding of the events, such as ``EVT3``; else the one that the camera uses."""
        if name := self.fields.get("format", "").partition(";")[0]:
            return name.strip().upper().replace(".", "")
        if version := self.fields.get("evt"):
            return "EVT" + version.removesuffix(".0").replace(".", "")
        if self._camera in _WRITE_EVT3:
            return "EVT3"
        return "EVT2" if self._camera in _SENSORS[_VGA] | _SENSORS[_HD] else ""

    @property
    def sensor_size(self) -> tuple[int, int] | None:
        """(height, width): from ``geometry``, ``format``, lines of their own, or the camera."""
        width, _, height = self.fields.get("geometry", "").partition("x")
        stated = [(height, width)]
        for keys in (self.options, self.fields):
            stated.append((keys.get("height", ""), keys.get("width", "")))
        for sides in stated:
            if all(map(_SIDE.fullmatch, sides)):
                return int(sides[0]), int(sides[1])
        by_number = (size for size, numbers in _SENSORS.items() if self._camera in numbers)
        plugin = self.fields.get("plugin_name", "").lower()
        generation = self.fields.get("sensor_generation", self.fields.get("generation", ""))
        by_plugin = (size for pattern, size in _PLUGINS if pattern.search(plugin))
        return next(by_number, None) or next(by_plugin, _GENERATIONS.get(generation))

    @property
    def _camera(self) -> int | None:
        number = self.fields.get("system_id", "")
        return int(number) if re.fullmatch(r"[0-9]{1,4}", number) else None


def read_header(path: Path) -> Header:
    """Read the lines at the head of a file, up to ``% end`` or to the first that is none."""
    fields, offset = {}, 0
    with open(path, "rb") as file:
        for _ in range(_MOST_LINES):
            line = file.readline(_LONGEST_LINE)
            if not _LINE.fullmatch(line):
                break
            offset += len(line)
            keyword, _, value = line[2:].decode("latin-1").strip().partition(" ")
            if keyword == "end" and not value:
                break
            fields[keyword.lower()] = value.strip()
    return Header(fields, offset)
