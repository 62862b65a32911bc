"""The cameras of AEDAT: their names, sizes, and where an address of AEDAT 1 and 2 holds what.

The layouts are those of jAER's classes. jAER counts rows from the bottom, so that an image is the
right way round with its rows mirrored. Most of its cameras have the columns mirrored too.
"""

import re
from typing import NamedTuple


class Layout(NamedTuple):
    """Where an address holds what; bits count from 0.

    Attributes:
        x, y: The lowest bit, and how many there are.
        p: The polarity's bit.
        on: The value of that bit that means brighter.
        marks: Bits of which one is set in what is no event of a pixel.
        unused: Bits of which none is set in an event.
    """

    x: tuple[int, int]
    y: tuple[int, int]
    p: int
    on: int
    marks: int
    unused: int = 0


DVS128 = Layout(x=(1, 7), y=(8, 7), p=0, on=0, marks=0x8000_8000, unused=0x7FFF_0000)
# Bit 31 marks samples of images and motion, bit 10 signals from outside.
DAVIS = Layout(x=(12, 10), y=(22, 9), p=11, on=1, marks=0x8000_0400)
DVS640 = Layout(x=(1, 10), y=(11, 10), p=0, on=1, marks=0x8000_0000, unused=0x7FE0_0000)


class Chip(NamedTuple):
    """A camera.

    Attributes:
        layout: Of its addresses.
        sensor_size: (height, width); None where cameras of that name differ.
        mirrored: Whether rows and columns count from the far end.
    """

    layout: Layout
    sensor_size: tuple[int, int] | None
    mirrored: tuple[bool, bool] = (True, True)


# Colour DAVISes with smaller event pixels (CDAVIS, DAVISRGBW640), DVS1280x720SD, which jAER writes
# and reads mirrored differently, and test chips are not among them.
_CHIPS = (
    (r"(DVS128|Tmpdiff128)(_PAER)?|eDVS(4337)?", Chip(DVS128, (128, 128))),
    (r"DAVIS128(Color)?", Chip(DAVIS, (128, 128))),
    (r"DAVIS208(PixelParade)?(Color)?", Chip(DAVIS, (192, 208))),
    (r"(DAVIS|DVS)240(A|B|C|BaseCamera)?", Chip(DAVIS, (180, 240))),
    (
        r"DAVIS346(A|B|BColor|BaseCamera|blue|cBSI|mini|red|redColor|Zynq)?",
        Chip(DAVIS, (260, 346)),
    ),
    (r"DAVIS640(Color)?", Chip(DAVIS, (480, 640))),
    (r"DVS640", Chip(DVS640, (480, 640))),
    # VGA, or QVGA in the Lite.
    (r"DVXplorer(Micro)?", Chip(DAVIS, None, mirrored=(False, False))),
    # What the converter aedat4to2 writes, which leaves the columns as they are.
    (r"DAVI346", Chip(DAVIS, (260, 346), mirrored=(True, False))),
)
KNOWN = "DVS128, DAVIS128, 208, 240, 346 and 640, DVS640 and DVXplorer"


def find(name: str) -> Chip | None:
    """Return the camera that jAER's class of that name, with its package or without, is for."""
    name = re.sub(r"^(\w+\.)+", "", name)
    return next((chip for names, chip in _CHIPS if re.fullmatch(names, name, re.I)), None)


def find_in(text: str) -> Chip | None:
    """Return the camera whose name is a word of a text, as in ``DVS128-V1 0298``."""
    return next((chip for word in re.findall(r"\w+", text) if (chip := find(word))), None)
