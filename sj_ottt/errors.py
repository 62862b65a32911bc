"""The exceptions that stand for bad input."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input: an argument, a file or a configuration that the user can mend.

    Its message is one line that names the argument or file and says what to do. The command line
    prints it and leaves with exit code 2; any other exception is a defect of ours and keeps its
    traceback.
    """


class NotFiniteError(InputError):
    """A loss or a gradient that is not finite; no parameter was changed by it."""


def suggest(name: str, names: Iterable[str]) -> str:
    """Return ``"; did you mean X?"`` for the name closest to a mistyped one, else ``""``."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""
