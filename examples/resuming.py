"""The command line of a run that may be resumed: what is not given again is as it was."""

import argparse
from collections.abc import Collection

from sj_ottt.errors import InputError
from sj_ottt.run.checkpoint import load_checkpoint


def parse_args(parser: argparse.ArgumentParser, free: Collection[str]) -> argparse.Namespace:
    """Parse the command line; with --resume, on top of what the run in --out was started with.

    Args:
        parser: Knows --resume and --out.
        free: Names of options that may change on a resume.

    Raises:
        InputError: If there is no run of this script to resume, or another option has changed.
    """
    args = parser.parse_args()
    if not args.resume:
        return args
    told = load_checkpoint(args.out).get("told", {})
    if not vars(args).keys() - set(free) <= told.keys():
        raise InputError(f"{args.out} holds a run of another program: choose another --out")
    known = {name: value for name, value in told.items() if name in vars(args)}
    parser.set_defaults(**known)
    args = parser.parse_args()
    changed = [name for name, value in known.items() if vars(args)[name] != value]
    if changed:
        listed = " ".join(f"--{name.replace('_', '-')} {told[name]}" for name in changed)
        raise InputError(f"{args.out} was started with {listed}: leave that out, or choose --out")
    return args
