"""`sj-ottt export`: a trained model as a file for another program."""

import argparse

from sj_ottt.errors import InputError

__all__ = ["add", "run"]


def add(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="the --out of a run")
    parser.add_argument("--to", required=True, choices=("nir", "onnx", "torch"), help="the format")
    parser.add_argument(
        "--out", required=True, metavar="FILE", help="the file to write; .pt2 for torch"
    )
    parser.add_argument(
        "--steps",
        metavar="T",
        help="onnx, torch: time steps that the file takes at once, or `one`, with the state as "
        "input and output (default: the run's)",
    )
    parser.add_argument(
        "--reader",
        choices=("snntorch", "norse", "sinabs"),
        help="nir: the library for whose time step it is written (default: snntorch)",
    )


def run(args: argparse.Namespace) -> None:
    """Export, and say what was written."""
    from sj_ottt.export.checkpoints import export_checkpoint  # not needed by any other command

    steps = args.steps
    if steps not in (None, "one"):
        if not steps.isdecimal():
            raise InputError(f"--steps {steps}: give a whole number from 1 on, or one")
        steps = int(steps)
    made = export_checkpoint(args.checkpoint, args.to, args.out, steps, args.reader)
    print(f"{args.to:7} {made.path}  ({made.path.stat().st_size / 1e6:.1f} MB)")
    print(f"input   [{', '.join(map(str, made.input_shape))}]")
    print(f"classes {', '.join(made.classes)}")
    for name, verdict in made.readers.items():
        print(f"{name:8} {verdict}")
