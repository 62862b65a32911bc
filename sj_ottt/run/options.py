"""An option of a training run: its default, its check, its text; and groups of them."""

import dataclasses
import math
import reprlib
from collections.abc import Callable
from typing import Any, ClassVar

from sj_ottt.errors import InputError

Check = Callable[[Any], Any]
"""Returns the value in its final type, or raises ValueError saying what would be accepted.

Text is accepted for numbers: the command line has nothing else, and YAML 1.1 reads 1e-3 as text.
"""


def option(default: Any, check: Check, description: str) -> Any:
    """Return the dataclass field of an option.

    Args:
        default: Its value where it is left out.
        check: What it must be.
        description: What the command's help says of it.
    """
    return dataclasses.field(default=default, metadata={"check": check, "help": description})


@dataclasses.dataclass(frozen=True)
class Section:
    """Options that belong together, checked on construction.

    Raises:
        InputError: A value has the wrong type, is out of range, or does not go with another one;
            the message names the option.
    """

    title: ClassVar[str]
    """What the command's help puts above these options."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            try:
                checked = field.metadata["check"](value)
            except ValueError as error:
                raise InputError(f"{field.name} must be {error}, not {_shown(value)}") from None
            object.__setattr__(self, field.name, checked)
        self._check_together()

    def _check_together(self) -> None:
        """Check what must hold between the options of this section."""


def _shown(value: Any) -> str:
    """Return a value for a message; of one that is nested or drawn out, its beginning."""
    shorten = reprlib.Repr()
    shorten.maxlevel, shorten.maxlist, shorten.maxdict = 2, 4, 4
    shorten.maxstring = shorten.maxother = shorten.maxlong = 80
    try:
        return shorten.repr(value)
    except ValueError:  # Python writes no whole number of thousands of digits
        return "such a long number"


def text(value: Any) -> str:
    """Check a text that is not empty."""
    if not isinstance(value, str) or not value:
        raise ValueError("a text that is not empty")
    return value


def choice(*names: str) -> Check:
    """Make the check of one of several names."""

    def check(value: Any) -> str:
        if value not in names:
            raise ValueError("one of " + ", ".join(names))
        return value

    return check


def flag(value: Any) -> bool:
    """Check a truth value."""
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def integer(low: int, high: int = (1 << 63) - 1) -> Check:
    """Make the check of a whole number from ``low`` to ``high``."""
    message = f"a whole number from {low} " + ("on" if high == (1 << 63) - 1 else f"to {high}")

    def check(value: Any) -> int:
        if isinstance(value, bool | float):
            raise ValueError(message)
        try:
            number = int(value)
        except (TypeError, ValueError):
            raise ValueError(message) from None
        if not low <= number <= high:
            raise ValueError(message)
        return number

    return check


def chunk_size(value: Any) -> int | str:
    """Check a number of time steps that run together, or "auto"."""
    if value == "auto":
        return "auto"
    try:
        return integer(1)(value)
    except ValueError:
        raise ValueError('a whole number of time steps from 1 on, or "auto"') from None


def number(accepts: Callable[[float], bool], message: str) -> Check:
    """Make the check of a finite number.

    Args:
        accepts: Whether a number is in the range.
        message: The range in words.
    """

    def check(value: Any) -> float:
        try:
            checked = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            checked = math.nan
        if not (math.isfinite(checked) and accepts(checked)):
            raise ValueError(message)
        return checked

    return check


positive = number(lambda v: v > 0, "a finite number above 0")
not_negative = number(lambda v: v >= 0, "a finite number from 0 on")
share = number(lambda v: 0 <= v <= 1, "a number from 0 to 1")
share_below_one = number(lambda v: 0 <= v < 1, "a number from 0 to below 1")


def optional(check: Check) -> Check:
    """Make a check that lets None pass."""
    return lambda value: None if value is None else check(value)


def frame_size(value: Any) -> tuple[int, int]:
    """Check (height, width) in pixels."""
    message = "two whole numbers from 1 on, height and width in pixels"
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError(message)
    try:
        height, width = map(integer(1), value)
    except ValueError:
        raise ValueError(message) from None
    return height, width


def box(value: Any) -> tuple[int, ...]:
    """Check (height, width) or (top, left, height, width) in pixels."""
    message = "two or four whole numbers: (top, left,) height and width in pixels"
    if not isinstance(value, list | tuple) or len(value) not in (2, 4):
        raise ValueError(message)
    try:
        return (*map(integer(0), value[:-2]), *map(integer(1), value[-2:]))
    except ValueError:
        raise ValueError(message) from None


def name_list(value: Any) -> tuple[str, ...]:
    """Check a list of names, or a text of them with commas between."""
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(n, str) and n for n in names):
        raise ValueError("names with commas between them")
    return tuple(names)


def name_or_number(value: Any) -> str:
    """Check a name that may be a number, which YAML reads as one."""
    return text(str(value) if type(value) is int else value)


def weight_source(value: Any) -> bool | str | None:
    """Check what names pretrained weights: True for the default ones, a tag, or a path."""
    if value in (None, False):
        return None
    if value is True or (isinstance(value, str) and value):
        return value
    raise ValueError("true, the tag of the weights, or a path")
