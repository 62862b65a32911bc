"""`sj-ottt data`: what recordings hold, and samples made of them."""

import argparse
import shlex
from collections import Counter
from pathlib import Path

# The data modules are imported by the subcommand that needs them: torch takes seconds.


def _add_slice(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recordings", nargs="+", metavar="RECORDINGS", help="files or folders")
    labels = parser.add_mutually_exclusive_group(required=True)
    labels.add_argument(
        "--labels",
        metavar="FILE.csv",
        help="lines of file,start,end,label and, if wanted, session below such a line of names; "
        "times count from the recording's first event, in µs or as in 20ms, 1.5s",
    )
    labels.add_argument(
        "--label-from-folder",
        action="store_true",
        help="each recording's folder is its label, the folder above that its session",
    )
    parser.add_argument("--out", required=True, metavar="DATASET", help="the folder to make")
    parser.add_argument("--window", default="200ms", metavar="TIME", help="default: %(default)s")
    parser.add_argument("--stride", default="100ms", metavar="TIME", help="default: %(default)s")
    parser.add_argument(
        "--min-events",
        type=int,
        default=500,
        metavar="N",
        help="leave out windows with fewer (default: %(default)s)",
    )
    parser.add_argument(
        "--split-by",
        default="recording",
        choices=("recording", "session", "time"),
        help="test on whole recordings, on whole sessions, or on the end of every recording "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--test-fraction", type=float, default=0.2, metavar="F", help="default: %(default)s"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="draws the test recordings or sessions"
    )


def _slice(args: argparse.Namespace) -> None:
    from sj_ottt.data import labels, slicing

    config = slicing.SliceConfig(
        window=labels.parse_duration(args.window),
        stride=labels.parse_duration(args.stride),
        min_events=args.min_events,
        split_by=args.split_by,
        test_fraction=args.test_fraction,
        seed=args.seed,
    )
    recordings = slicing.find_recordings(args.recordings)
    if args.labels:
        labelled = labels.read_labels(args.labels, recordings)
    else:
        labelled = labels.labels_from_folders(recordings)
    result = slicing.slice_recordings(labelled, args.out, config)

    parts = {name: Counter(w.label for w in windows) for name, windows in result.parts.items()}
    names = sorted(parts["train"] | parts["test"])
    width = max(len(name) for name in (*names, "class", "all"))
    print(f"{'class':{width}}  {'train':>7}  {'test':>7}")
    for name in names:
        print(f"{name:{width}}  {parts['train'][name]:7}  {parts['test'][name]:7}")
    print(f"{'all':{width}}  {parts['train'].total():7}  {parts['test'].total():7}")
    unlabelled = len(recordings) - len(labelled)
    for reason, n in {**result.left_out, "recordings without a label": unlabelled}.items():
        if n:
            print(f"left out: {n} {reason}")
    if args.split_by == "time":
        print("test: the end of each class in each recording, behind a gap")
    else:
        tests = sorted({getattr(w, args.split_by) for w in result.parts["test"]})
        listed = ", ".join(tests[:6]) + (f" and {len(tests) - 6} more" if len(tests) > 6 else "")
        print(f"test: {len(tests)} {args.split_by}{'s' * (len(tests) > 1)}: {listed}")
    print(f"split     {Path(args.out) / 'slices.csv'}")
    print(f"train     sj-ottt train --data {shlex.quote(args.out)} --out runs/mine")


def add(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands of ``sj-ottt data``."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, text, fill, run in (
        ("slice", "cut labelled recordings into samples for training", _add_slice, _slice),
    ):
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.set_defaults(run=run)
        fill(command)
