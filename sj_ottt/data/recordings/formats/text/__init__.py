"""Events as text, one event a line: CSV or TXT, zipped too.

Cells are separated by commas, semicolons, tabs or blanks; lines that begin with ``#`` or ``%`` are
comments. A line of names, a comment too, says what the columns are; without one, they are told by
what they hold (see `formats.columns`). Numbers may be whole or real, the polarity a word too (True,
False, On, Off). Times in whole numbers, in the notation of real ones too, are µs; times with
fractions are seconds. A line of two whole numbers before the events states the sensor's width and
height, as do comments (``%geometry:346,260``, ``# width: 346``) and names (``x@346``). The first
events decide: what contradicts them further on is refused.
"""

from sj_ottt.data.recordings.formats.text.files import sniff, sniff_zipped, stream, stream_zipped
from sj_ottt.data.recordings.formats.text.stream import TextStream

__all__ = ["TextStream", "sniff", "sniff_zipped", "stream", "stream_zipped"]
