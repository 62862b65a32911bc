"""`sj-ottt data`: what recordings hold, and samples made of them."""

import argparse
import shlex
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from sj_ottt.cli import data_view
from sj_ottt.cli.reading import add_read_options, read_options
from sj_ottt.data import (
    SliceConfig,
    find_recordings,
    labels_from_folders,
    read_labels,
    record_images,
    slice_recordings,
    survey_recordings,
)
from sj_ottt.data.prepare.slice import HELD_OUT
from sj_ottt.data.prepare.survey import RecordingInfo
from sj_ottt.data.recordings.folders import SLICES
from sj_ottt.data.recordings.label_table import parse_duration

_STILLS = 8  # of each class, in the contact sheet


def _add_slice(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recordings", nargs="+", metavar="RECORDINGS", help="files or folders")
    labels = parser.add_mutually_exclusive_group(required=True)
    labels.add_argument(
        "--labels",
        metavar="FILE.csv",
        help="table whose first line names its columns: file,start,end,label and, if wanted, "
        "session and part (train or test); times count from the recording's first event, in µs or "
        "as in 20ms, 1.5s",
    )
    labels.add_argument(
        "--label-from-folder",
        action="store_true",
        help="each recording's folder is its label, the folder above that its session",
    )
    parser.add_argument("--out", required=True, metavar="DATASET", help="the folder to make")
    parser.add_argument(
        "--window",
        default="200ms",
        metavar="TIME",
        help="length of a sample (default: %(default)s)",
    )
    parser.add_argument(
        "--stride",
        default="100ms",
        metavar="TIME",
        help="from one sample's start to the next one's (default: %(default)s)",
    )
    parser.add_argument(
        "--min-events",
        type=int,
        default=500,
        metavar="N",
        help="leave out windows with fewer (default: %(default)s)",
    )
    parser.add_argument(
        "--test-by",
        dest="hold_out",
        default=SliceConfig.hold_out,
        choices=HELD_OUT,
        help="test on whole recordings, on whole sessions, or on the end of every recording "
        "(default: %(default)s)",
    )
    # Its name until it turned out that `train --split-by` means something else.
    parser.add_argument(
        "--split-by",
        dest="hold_out",
        default=argparse.SUPPRESS,
        choices=HELD_OUT,
        help=argparse.SUPPRESS,
    )
    for kind in ("recording", "session"):
        parser.add_argument(
            f"--test-{kind}",
            dest=f"test_{kind}s",
            nargs="+",
            action="extend",
            default=[],
            metavar="NAME",
            help=f"test on {kind}s of these names (default: some are drawn, or the table's column "
            "part says which)",
        )
    parser.add_argument(
        "--test-fraction",
        type=float,
        default=SliceConfig.test_fraction,
        metavar="SHARE",
        help="share of the windows to test on (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=SliceConfig.seed,
        metavar="N",
        help="draws the recordings or sessions to test on (default: %(default)s)",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace an earlier data set of this command in --out",
    )
    add_read_options(parser)


def _slice(args: argparse.Namespace) -> None:
    config = SliceConfig(
        window=parse_duration(args.window, unit=True),
        stride=parse_duration(args.stride, unit=True),
        min_events=args.min_events,
        hold_out=args.hold_out,
        test_fraction=args.test_fraction,
        seed=args.seed,
        test_recordings=tuple(args.test_recordings),
        test_sessions=tuple(args.test_sessions),
    )
    options = read_options(args)
    recordings = find_recordings(args.recordings)
    if args.labels:
        labelled = read_labels(args.labels, recordings)
    else:
        labelled = labels_from_folders(recordings)
    result = slice_recordings(labelled, args.out, config, options, overwrite=args.overwrite)

    parts = {name: Counter(w.label for w in windows) for name, windows in result.parts.items()}
    names = sorted(parts["train"] | parts["test"])
    width = max(len(name) for name in (*names, "class", "all"))
    print(f"{'class':{width}}  {'train':>7}  {'test':>7}")
    for name in names:
        print(f"{name:{width}}  {parts['train'][name]:7}  {parts['test'][name]:7}")
    print(f"{'all':{width}}  {parts['train'].total():7}  {parts['test'].total():7}")
    for reason, n in result.left_out.items():
        print(f"left out: {n} {reason}")
    if unlabelled := len(recordings) - len(labelled):
        print(f"left out: {_count(unlabelled, 'recording')} without a label")
    if args.hold_out == "time":
        print("test: the end of each class in each recording, behind a gap")
    else:
        tests = sorted({getattr(w, args.hold_out) for w in result.parts["test"]})
        listed = ", ".join(tests[:6]) + (f" and {len(tests) - 6} more" if len(tests) > 6 else "")
        print(f"test: {_count(len(tests), args.hold_out)}: {listed}")
    height, width = result.sensor_size
    print(f"sensor    {height} x {width} pixels (height x width)")
    print(f"split     {Path(args.out) / SLICES}")
    print(f"train     sj-ottt train --data {shlex.quote(args.out)} --out runs/mine")


def _add_info(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="DIR|FILE", help="a recording, or a folder of them")
    parser.add_argument(
        "--out", default="data_info", metavar="DIR", help="for the pictures (default: %(default)s)"
    )
    add_read_options(parser)


def _info(args: argparse.Namespace) -> None:
    # matplotlib takes most of a second to import.
    from sj_ottt.cli.data_pictures import draw

    survey = survey_recordings(args.path, read_options(args), stills=_STILLS)
    recordings, (height, width) = survey.recordings, survey.sensor_size
    labels = sorted({one.label for one in recordings})
    summary = _count(len(recordings), "recording")
    if classes := len(labels) if labels != [""] else 0:
        summary += f", {_count(classes, 'class', 'classes')}"
    print(f"{args.path}: {summary}, sensor {height} x {width} pixels (height x width)")
    print(f"{'':14}{'smallest':>12}{'median':>12}{'largest':>12}{'sum':>14}")
    for name, values, form in (
        ("events", [one.events for one in recordings], ",.0f"),
        ("duration, s", [one.duration / 1e6 for one in recordings], ",.3f"),
        ("events per s", [one.rate for one in recordings], ",.0f"),
    ):
        total = f"{sum(values):14{form}}" if name != "events per s" else ""
        cells = (min(values), statistics.median(values), max(values))
        print(f"{name:14}{''.join(f'{value:12{form}}' for value in cells)}{total}")
    n_events = sum(one.events for one in recordings)
    print(f"ON events     {sum(one.on_events for one in recordings) / n_events:12.1%}")
    if classes > 1:
        _print_classes(recordings, labels)
    hot = survey.hot()
    share = survey.pixel_counts[tuple(hot.T)].sum() / n_events
    print(f"hot pixels: {len(hot)} of {height * width}, with {share:.1%} of the events")
    for y, x in hot[:8]:
        often = survey.times_hot[y, x] / len(recordings)
        print(f"  x = {x}, y = {y}, hot in {often:.0%} of the recordings")
    for problem in survey.problems[:5]:
        print(f"cannot be used: {problem}")
    if len(survey.problems) > 5:
        print(f"cannot be used: {len(survey.problems) - 5} more")
    for path in draw(survey, Path(args.out)):
        print(f"picture   {path}")
    if Path(args.path).is_file():
        print(f"view      sj-ottt data view {shlex.quote(args.path)}")


def _add_simulate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", metavar="IMAGES", help="folder of image folders")
    parser.add_argument("--out", required=True, metavar="DATASET", help="folder to make")
    # The defaults are those of the function: only what was typed reaches it.
    for flag, kind, names, text in (
        ("sensor-size", int, ("H", "W"), "pixels of the sensor (default: 34 34)"),
        ("duration-us", int, "US", "length of a recording in µs (default: 300000)"),
        ("test-fraction", float, "SHARE", "test images of each class (default: 0.2)"),
        ("seed", int, "N", "of the split and of the pixels (default: 0)"),
        ("workers", int, "N", "processes (default: one per core for many images)"),
        ("travel", float, "SHARE", "extent of the path, of the sensor's side (default: 0.15)"),
        ("rounds", float, "N", "how often the image goes round it (default: 1)"),
        ("position", float, ("DOWN", "RIGHT"), "of its centre, in pixels (default: 0 0)"),
        ("zoom", float, "X", "size of the image, 1: as large as fits (default: 1)"),
        ("threshold", float, "X", "contrast threshold in log intensity (default: 0.3)"),
        ("mismatch", float, "SHARE", "its relative deviation between pixels (default: 0.03)"),
        ("refractory-us", int, "US", "time in which a pixel fires once (default: 0)"),
        ("leak-hz", float, "HZ", "leak events per pixel and second (default: 0)"),
        ("noise-hz", float, "HZ", "noise events per dark pixel and second (default: 0)"),
    ):
        parser.add_argument(
            f"--{flag}",
            type=kind,
            nargs=2 if isinstance(names, tuple) else None,
            metavar=names,
            help=text,
            default=argparse.SUPPRESS,
        )


def _simulate(args: argparse.Namespace) -> None:
    kwargs = {name: value for name, value in vars(args).items() if name != "run"}
    counts = record_images(**kwargs)
    listed = ", ".join(f"{count} for {part}" for part, count in counts.items())
    print(f"recorded  {listed}")
    print(f"train     sj-ottt train --data {shlex.quote(args.out)} --out runs/mine")


def _count(n: int, one: str, many: str | None = None) -> str:
    return f"{n} {one if n == 1 else many or one + 's'}"


def _print_classes(recordings: Sequence[RecordingInfo], labels: Sequence[str]) -> None:
    parts = [part for part in ("train", "test", "") if any(one.part == part for one in recordings)]
    width = max(len(label) for label in (*labels, "class"))
    head = "".join(f"{part or 'recordings':>12}" for part in parts)
    print(f"{'class':{width}}{head}{'events, median':>16}")
    for label in labels:
        members = [one for one in recordings if one.label == label]
        counts = "".join(f"{sum(one.part == part for one in members):12}" for part in parts)
        median = statistics.median(one.events for one in members)
        print(f"{label:{width}}{counts}{median:16,.0f}")
    (most, n_most), *_, (fewest, n_fewest) = Counter(one.label for one in recordings).most_common()
    print(f"balance: {n_fewest} ({fewest}) to {n_most} ({most}) recordings a class")


def add(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands of ``sj-ottt data``."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, text, fill, run in (
        ("info", "describe and draw what recordings hold", _add_info, _info),
        (
            "view",
            "make a page of one recording, to look at and to label it",
            data_view.add,
            data_view.run,
        ),
        ("slice", "cut labelled recordings into samples for training", _add_slice, _slice),
        (
            "simulate",
            "record a folder of images, one folder a class, with a simulated event camera",
            _add_simulate,
            _simulate,
        ),
    ):
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.set_defaults(run=run)
        fill(command)
