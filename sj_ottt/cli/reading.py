"""The flags that say how recordings are read: the same ones on every command that reads some."""

import argparse

from sj_ottt.data.recordings.source import ReadOptions


def add_read_options(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `ReadOptions`."""
    group = parser.add_argument_group("reading recordings")
    group.add_argument(
        "--sensor-size",
        nargs=2,
        type=int,
        metavar=("H", "W"),
        help="height and width of the sensor in pixels (default: what the files state)",
    )
    group.add_argument(
        "--strict",
        action="store_true",
        help="refuse what is otherwise repaired, or assumed, with a warning",
    )
    group.add_argument(
        "--camera",
        metavar="NAME",
        help="which of several cameras in a file, by its name or its number from 0 on",
    )
    group.add_argument(
        "--time-unit",
        metavar="UNIT",
        help="of times in text and arrays: us, ns, ms or s (default: told by the file)",
    )


def read_options(args: argparse.Namespace) -> ReadOptions:
    """Return what was typed.

    Raises:
        InputError: A wrong value.
    """
    return ReadOptions(args.strict, args.sensor_size, args.camera, args.time_unit)
