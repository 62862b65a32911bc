"""The `sj-ottt` command: arguments in, the package called, what it returns printed."""

import argparse
import atexit
import contextlib
import dataclasses
import gc
import os
import shlex
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sj_ottt import __version__, zoo
from sj_ottt.cli import data, export
from sj_ottt.cli import zoo as zoo_commands
from sj_ottt.cli.reading import add_read_options, read_options
from sj_ottt.data.encodings import EVENTS_FROM_IMAGE
from sj_ottt.data.recordings.readers import open_recording
from sj_ottt.data.recordings.streams import follow
from sj_ottt.errors import InputError, suggest
from sj_ottt.inference.adapt import adapt, open_labelled
from sj_ottt.inference.predict import (
    check_trained,
    durations,
    fewest_events,
    label_stream,
    label_windows,
)
from sj_ottt.run import training
from sj_ottt.run.config import TrainConfig
from sj_ottt.run.evaluation import evaluate, load_trained
from sj_ottt.run.finetune import USUAL
from sj_ottt.run.group import started_by_torchrun
from sj_ottt.run.options import chunk_size
from sj_ottt.run.stopping import RunStopped

# Where a flag's last word would mislead.
_METAVARS = {
    "early_stop": "EPOCHS",
    "freeze": "NAME,NAME",
    "hot_pixels": "TIMES",
    "drop_events": "SHARE",
    "time_jitter": "FRAMES",
    "out": "DIR",
    "pull_to": "DIR",
    "split_by": "HOW",
    "camera": "NAME",
}


def _step_list(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError("give whole numbers like 1,2,4,8") from None


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE.yaml", help="recipe; flags win over its values")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue the run in --out from where it was last saved, with its own configuration",
    )
    for section in TrainConfig.sections().values():
        group = parser.add_argument_group(section.title)
        for field in dataclasses.fields(section):
            _add_option(group, field)


def _add_option(group: argparse._ArgumentGroup, field: dataclasses.Field) -> None:
    """Add the flag of an option of `TrainConfig`."""
    kwargs: dict[str, Any] = {}
    if isinstance(field.default, bool):
        kwargs["action"] = argparse.BooleanOptionalAction
    elif field.name in ("size", "sensor_size"):
        kwargs |= {"nargs": 2, "metavar": ("H", "W")}
    elif field.name == "crop":
        kwargs |= {"nargs": "+", "metavar": "PIXELS"}
    elif field.name == "pretrained":
        kwargs |= {"nargs": "?", "const": True, "metavar": "TAG"}
    else:
        last_word = field.name.rpartition("_")[2].upper()
        kwargs["metavar"] = _METAVARS.get(field.name, last_word)
    # Where nothing is the default, the text itself says what that means.
    usual = USUAL.get(field.name, field.default)
    default = "" if usual is None else f" (default: {usual})"
    group.add_argument(
        "--" + field.name.replace("_", "-"),
        # No default reaches the namespace: only what was typed may win over the recipe.
        default=argparse.SUPPRESS,
        help=field.metadata["help"] + default,
        **kwargs,
    )


def _train(args: argparse.Namespace) -> None:
    names = TrainConfig.option_names()
    overrides = {name: value for name, value in vars(args).items() if name in names}
    # Before all else, so that the advice on Ctrl-C knows the run's folder.
    config = training.configure(args.config, overrides, resume=args.resume)
    # After the death of a process, torchrun starts the same command again; it may go on with the
    # run of its own options only, so those of the checkpoint do not stand in for the defaults.
    again = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    resume = args.resume or (again and (Path(config.run.out) / "last.pt").exists())
    try:
        result = training.train(config, resume=resume)
    except KeyboardInterrupt:
        if (Path(config.run.out) / "last.pt").exists():
            command = f"sj-ottt train --resume --out {shlex.quote(config.run.out)}"
            raise KeyboardInterrupt(f"continue with: {command}") from None
        raise
    except RunStopped as stopped:
        if _is_first():
            command = f"sj-ottt train --resume --out {shlex.quote(config.run.out)}"
            print(f"sj-ottt: {stopped}; continue with: {command}", file=sys.stderr)
        sys.exit(stopped.exit_code)
    if not _is_first():
        return
    out = Path(config.run.out)
    print(
        f"test accuracy {result['test_accuracy']:.4f} on {result['n_test']} samples "
        f"(model of epoch {result['best_epoch']} of {result['epochs']}, "
        f"{result['seconds']:.0f} s)\n"
        f"result    {out / 'result.json'}\n"
        f"pictures  {out / 'curves.png'}  {out / 'frames.png'}\n"
        f"model     {out / 'best.safetensors'}"
    )
    if "sensor_size" in result["data"] or config.frames.encoding in EVENTS_FROM_IMAGE:
        print(f"predict   sj-ottt predict --checkpoint {shlex.quote(config.run.out)} FILE")


def _is_first() -> bool:
    """Whether this process speaks for those that ``torchrun`` started, or is alone."""
    place = started_by_torchrun()
    return place is None or place[0] == 0


def _add_eval(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="the --out of a run")
    parser.add_argument("--data", help="as for sj-ottt train (default: the run's)")
    parser.add_argument(
        "--steps",
        type=_step_list,
        metavar="T,T,...",
        help="numbers of time steps, such as 1,2,4,8 (default: the run's)",
    )
    parser.add_argument(
        "--split", default="test", choices=("test", "train"), help="default: %(default)s"
    )
    parser.add_argument(
        "--batch-size", type=int, default=64, metavar="N", help="default: %(default)s"
    )
    parser.add_argument(
        "--workers", type=int, default=0, metavar="N", help="processes that load data (default: 0)"
    )
    parser.add_argument("--device", default="auto", help="default: %(default)s")
    parser.add_argument("--chunk", type=chunk_size, default=1, help="as for sj-ottt train")
    add_read_options(parser)


def _eval(args: argparse.Namespace) -> None:
    rows = evaluate(
        args.checkpoint,
        args.data,
        args.steps,
        split=args.split,
        batch_size=args.batch_size,
        workers=args.workers,
        device=args.device,
        reading=read_options(args),
        chunk=args.chunk,
    )
    if not _is_first():
        return
    print(f"{'steps':>5}  {'accuracy':>8}  {'samples':>7}  {'ms/sample':>9}")
    for row in rows:
        print(f"{row['steps']:5}  {row['accuracy']:8.4f}  {row['n']:7}  {row['ms']:9.2f}")


def _add_analyze(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="the --out of a run")
    parser.add_argument("--data", help="as for sj-ottt train (default: the run's)")
    parser.add_argument(
        "--what",
        type=lambda text: text.split(","),
        default=["rates", "synops", "energy", "latency", "alignment"],
        metavar="NAME,NAME,...",
        help="rates, synops, energy, latency, alignment (default: all)",
    )
    parser.add_argument(
        "--picojoules",
        type=_picojoules,
        metavar="MAC,AC",
        help="what a multiplication with its addition, and an addition alone, take (default: "
        "4.6,0.9, 32-bit numbers in 45 nm, Horowitz 2014)",
    )
    parser.add_argument("--out", metavar="DIR", help="default: analysis in the run's folder")
    parser.add_argument(
        "--split", default="test", choices=("test", "train"), help="default: %(default)s"
    )
    parser.add_argument(
        "--samples", type=int, default=128, metavar="N", help="recordings (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, metavar="T", help="time steps (default: the run's)")
    parser.add_argument("--device", default="auto", help="default: %(default)s")


def _picojoules(text: str) -> tuple[float, float]:
    try:
        mac, ac = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError("give two numbers like 4.6,0.9") from None
    return mac, ac


def _analyze(args: argparse.Namespace) -> None:
    # matplotlib takes most of a second to import.
    from sj_ottt.analysis import EnergyCosts, report

    names = ("data", "out", "split", "samples", "steps", "device")
    kwargs = {name: getattr(args, name) for name in names}
    if args.picojoules is not None:
        mac, ac = args.picojoules
        kwargs["costs"] = EnergyCosts(mac * 1e-12, ac * 1e-12)
    for name, (rows, path) in report.analyze(args.checkpoint, args.what, **kwargs).items():
        print(f"{name}: {path}  {path.with_suffix('.png')}")
        print("  " + "  ".join(rows[0]))
        for row in rows:
            # Of the gradients the table is long: whole networks here, single weights in the file.
            if row.get("parameter", "all") == "all":
                cells = (f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values())
                print("  " + "  ".join(cells))


def _add_window(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--window",
        metavar="TIME",
        help="length of a sample, such as 200ms (default: that of the training samples where they "
        "were sliced, else the whole recording)",
    )
    parser.add_argument("--stride", metavar="TIME", help="from one to the next (default: --window)")
    parser.add_argument(
        "--min-events",
        type=int,
        metavar="N",
        help="windows with fewer give no label (default: as for the training samples where these "
        "were sliced and --window is not given, else 1)",
    )
    parser.add_argument("--device", default="auto", help="default: %(default)s")
    add_read_options(parser)


def _add_predict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="the --out of a run")
    parser.add_argument(
        "file", metavar="FILE", help="a recording; with --live text that may grow, or - for stdin"
    )
    parser.add_argument(
        "--live",
        action="store_true",
        help="label text (t,x,y,p a line) as it comes, the membranes kept from window to window",
    )
    parser.add_argument(
        "--idle",
        type=float,
        metavar="S",
        help="with --live, end when nothing has come for so many seconds (default: never)",
    )
    _add_window(parser)


def _predict(args: argparse.Namespace) -> None:
    trained = load_trained(args.checkpoint, args.device)
    check_trained(trained)
    window, stride = durations(trained, args.window, args.stride)
    fewest = fewest_events(trained, args.min_events, args.window)
    if args.live and args.stride is not None:
        raise InputError("--stride: with --live, windows follow one another; leave it out")
    read = read_options(args)
    for name in ("camera", "time_unit"):
        if args.live and getattr(read, name) is not None:
            flag = name.replace("_", "-")
            raise InputError(f"--{flag}: a stream is text of one camera, in µs; leave it out")
    if args.live:
        source = follow(args.file, args.idle)._replace(sensor_size=read.sensor_size)
        predictions = label_stream(trained, source, window, fewest, strict=read.strict)
    elif args.idle is not None or args.file == "-":
        what = "standard input" if args.file == "-" else "--idle"
        raise InputError(f"{what}: goes with --live only; add it")
    else:
        source = open_recording(args.file, read)
        predictions = label_windows(trained, source, window, stride, fewest, strict=read.strict)
    width = max(len(name) for name in trained.info.classes)
    print(f"{'start s':>9}  {'end s':>9}  {'label':{width}}  confidence  events")
    for prediction in predictions:
        label = "-" if prediction.label is None else prediction.label
        confidence = "" if prediction.label is None else f"{prediction.confidence:.3f}"
        start, end = prediction.start / 1e6, prediction.end / 1e6
        line = f"{start:9.3f}  {end:9.3f}  {label:{width}}  {confidence:>10}  {prediction.events:6}"
        tqdm.write(line)  # above a progress bar, where there is one
        sys.stdout.flush()  # for whoever reads them as they come


def _add_adapt(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="the --out of a run")
    # By itself, argparse would show FILE behind --hold-out, which would take it.
    parser.usage = (
        "%(prog)s --checkpoint DIR FILE [FILE ...] (--labels FILE.csv | --label-from-folder) "
        "[--hold-out FILE [FILE ...]] [--out DIR] [options]"
    )
    parser.add_argument(
        "recordings", nargs="+", metavar="FILE", help="recordings or folders, in this order"
    )
    labels = parser.add_mutually_exclusive_group(required=True)
    labels.add_argument("--labels", metavar="FILE.csv", help="as for sj-ottt data slice")
    labels.add_argument(
        "--label-from-folder", action="store_true", help="each recording's folder is its label"
    )
    parser.add_argument(
        "--hold-out",
        nargs="+",
        default=[],
        metavar="FILE",
        help="labelled recordings to test on before and after, never learned from",
    )
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate (default: 0.001)")
    parser.add_argument(
        "--out", metavar="DIR", help="write the adapted model there, as another --checkpoint"
    )
    _add_window(parser)


def _adapt(args: argparse.Namespace) -> None:
    trained = load_trained(args.checkpoint, args.device)
    check_trained(trained)
    window, stride = durations(trained, args.window, args.stride)
    fewest = fewest_events(trained, args.min_events, args.window)
    recordings, held_out = open_labelled(args.recordings, args.hold_out, args.labels)
    result = adapt(
        trained,
        recordings,
        held_out,
        window=window,
        stride=stride,
        min_events=fewest,
        lr=args.lr,
        out=args.out,
        read=read_options(args),
    )
    print(
        f"learned from {result.samples} samples, one at a time; of them "
        f"{result.right / result.samples:.1%} were labelled rightly before"
    )
    if result.held_out:
        print(
            f"held-out accuracy {result.before:.4f} before, {result.after:.4f} after, on "
            f"{result.held_out} samples"
        )
    if args.out:
        print(f"model     {Path(args.out) / 'best.safetensors'}")


def _models(args: argparse.Namespace) -> None:
    rows = [row for row in zoo.model_rows() if not row["name"].startswith("test_")]
    width = max(len(row["name"]) for row in rows)
    print(f"{'model':{width}}  {'parameters':>10}  weights")
    for row in rows:
        weights = ", ".join(row["weights"]) or "-"
        print(f"{row['name']:{width}}  {row['params'] / 1e6:9.2f}M  {weights}")


class _Parser(argparse.ArgumentParser):
    """Suggests the flag that was meant, where argparse only names the one it does not know."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            hint = suggest(unknown[0].partition("=")[0], self._option_string_actions)
            self.exit(2, f"{self.prog}: error: unknown: {shlex.join(unknown)}{hint}; see --help\n")
        return parsed, unknown


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="sj-ottt", description="Online training of spiking networks on event recordings."
    )
    parser.add_argument("--version", action="version", version=f"sj-ottt {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, text, add, run in (
        ("train", "train or fine-tune a model, and test it", _add_train, _train),
        ("eval", "test a trained model with one or more numbers of time steps", _add_eval, _eval),
        ("analyze", "measure a trained model's activity and gradients", _add_analyze, _analyze),
        ("data", "make and look at recordings, cut them into samples", data.add, None),
        ("predict", "label a raw recording or a stream, window by window", _add_predict, _predict),
        ("adapt", "learn from labelled recordings, a sample at a time", _add_adapt, _adapt),
        ("export", "write a trained model for another program", export.add, export.run),
        ("models", "list the models, their size and their weights", None, _models),
        ("zoo", "list, check, export and import trained weights", zoo_commands.add, None),
    ):
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.set_defaults(run=run)
        if add:
            add(command)
    return parser


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show warnings as errors are shown, without the line of code that they come from."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"sj-ottt: warning: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0, 2 on bad input, 130 on Ctrl-C, 141 where its output is closed."""
    args = _parser().parse_args(argv)
    # Python ends with a search for garbage among all of PyTorch's objects: a second for nothing.
    atexit.register(gc.freeze)
    try:
        with _plain_warnings():
            args.run(args)
    except InputError as error:
        print(f"sj-ottt: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"\nsj-ottt: interrupted; {interrupt}".rstrip("; "), file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read the output has enough, such as `head`; at its exit, Python would flush more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 0


if __name__ == "__main__":
    sys.exit(main())
