"""RAW: Prophesee's header, then words of one of the encodings EVT 2.0, 2.1 and 3.0."""

import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from sj_ottt.data.recordings.formats.common import assume, pieces, record_blocks
from sj_ottt.data.recordings.formats.prophesee.evt2 import Evt2, Evt21
from sj_ottt.data.recordings.formats.prophesee.evt3 import Evt3
from sj_ottt.data.recordings.formats.prophesee.header import Header, read_header
from sj_ottt.data.recordings.source import ReadOptions, Source
from sj_ottt.errors import InputError

_MARK = re.compile(rb"^% (?:evt|format|system_ID) ", re.MULTILINE | re.IGNORECASE)
_SAMPLE_BYTES = 1 << 12
_MOST_UNKNOWN = 0.1  # of a sample's words; noise has a quarter or more


def sniff(head: bytes) -> bool:
    """Recognize a RAW file, whose header names the encoding or the camera."""
    return head.startswith(b"% ") and _MARK.search(head) is not None


def stream(path: Path, options: ReadOptions) -> Source:
    """Read a RAW file in EVT 2.0, 2.1 or 3.0; other encodings are refused.

    Raises:
        InputError: Another encoding, or words that are not of the one that the header names.
    """
    header = read_header(path)
    with open(path, "rb") as file:
        file.seek(header.offset)
        sample = file.read(_SAMPLE_BYTES)
        n_bytes = file.seek(0, os.SEEK_END) - header.offset
    decoder = _decoder(path, header, sample, options)
    trial = decoder()
    words = np.frombuffer(sample, trial.dtype, len(sample) // trial.dtype.itemsize)
    if (unknown := _unknown(trial, words)) > _MOST_UNKNOWN:
        raise InputError(
            f"{path}: is not {header.encoding}, as its header says: {unknown:.0%} of its first "
            "words are of no type that there is; copy it again, or mend the header"
        )
    # The first words tell about how many events there are; the file's length does not.
    expected = len(trial(words)) * n_bytes // max(words.nbytes, 1)
    chunks = _chunks(path, header.offset, decoder(), options)
    return Source(str(path), chunks, header.sensor_size, expected)


def _decoder(
    path: Path, header: Header, sample: bytes, options: ReadOptions
) -> Callable[[], Evt2 | Evt3]:
    """Return what makes a decoder for the encoding that the header names."""
    endianness = header.options.get("endianness", "")
    if header.encoding == "EVT21" and endianness in ("", "little", "legacy"):
        if endianness:
            return partial(Evt21, swapped=endianness == "legacy")
        words = np.frombuffer(sample, Evt21.dtype, len(sample) // Evt21.dtype.itemsize)
        plain, swapped = (_unknown(Evt21(swapped), words) for swapped in (False, True))
        if swapped < plain:
            assume(
                path,
                options,
                "its header does not say in which order the halves of a word are; by what they "
                "hold they are taken to be an IMX636's",
                "add ;endianness=legacy to the header's line format, or ;endianness=little",
            )
        return partial(Evt21, swapped=swapped < plain)
    if header.encoding in ("EVT2", "EVT3") and endianness in ("", "little"):
        return Evt2 if header.encoding == "EVT2" else Evt3
    stated = header.fields.get("format") or header.encoding or "that its header does not name"
    raise InputError(
        f"{path}: RAW in the encoding {stated}, of which only little-endian EVT2, EVT21 and EVT3 "
        "are read; convert it with Metavision to one of them or to DAT"
    )


def _unknown(decoder: Evt2 | Evt3, words: np.ndarray) -> float:
    """Return the share of words [n] that are of no type that there is."""
    return 1 - float(decoder.is_known(words).mean()) if len(words) else 0.0


def _chunks(
    path: Path, offset: int, decoder: Evt2 | Evt3, options: ReadOptions
) -> Iterator[np.ndarray]:
    for words in record_blocks(path, offset, decoder.dtype, "word", options):
        for piece in pieces(words):
            yield decoder(piece)
