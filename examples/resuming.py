"""The command line of a run that may be resumed: options not given again keep their values."""

import argparse
from collections.abc import Collection

from sj_ottt.errors import InputError
from sj_ottt.run.checkpoint import load_checkpoint


def parse_args(parser: argparse.ArgumentParser, free: Collection[str]) -> argparse.Namespace:
    """Parse the command line; with --resume, the options of the run in --out are the defaults.

    Args:
        parser: Knows --resume and --out.
        free: Names of options that may change on a resume; all others must be in the checkpoint,
            under ``options``.

    Raises:
        InputError: There is no run of this script to resume, or another option has changed.
    """
    args = parser.parse_args()
    if not args.resume:
        return args
    saved = load_checkpoint(args.out).get("options", {})
    if not vars(args).keys() - set(free) <= saved.keys():
        raise InputError(f"{args.out} holds a run of another program: choose another --out")
    original = {name: value for name, value in saved.items() if name in vars(args)}
    parser.set_defaults(**original)
    args = parser.parse_args()
    changed = [name for name, value in original.items() if vars(args)[name] != value]
    if changed:
        listed = " ".join(f"--{name.replace('_', '-')} {original[name]}" for name in changed)
        raise InputError(f"{args.out} was started with {listed}: leave that out, or choose --out")
    return args
