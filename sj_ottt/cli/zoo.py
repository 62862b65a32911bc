"""`sj-ottt zoo`: trained weights listed, shown, checked, put there and brought from elsewhere."""

import argparse
import shlex
import sys

from tqdm import tqdm

from sj_ottt import zoo
from sj_ottt.errors import InputError
from sj_ottt.zoo.cards import read_card

__all__ = ["add"]

_WHERE = "default: $SJ_OTTT_ZOO, else zoo in ~/.cache/sj_ottt, or in $SJ_OTTT_CACHE"


def _add_where(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--zoo", metavar="FOLDER", help=f"a zoo besides the one that ships ({_WHERE})"
    )


def _add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tag", required=True, help="name of the weights: MODEL.TAG in timm")
    parser.add_argument("--to", metavar="FOLDER", help=f"the zoo to put them into ({_WHERE})")
    parser.add_argument(
        "--license", default="other", metavar="NAME", help="such as apache-2.0 (default: other)"
    )
    parser.add_argument(
        "--replace", action="store_true", help="take the place of weights of that name"
    )


def _list(args: argparse.Namespace) -> None:
    head = ("weights", "channels", "classes", "MB", "accuracy", "trained on")
    rows = [head]
    for entry in zoo.all_entries(args.zoo).values():
        try:
            card = read_card(entry)
            trained_on = card.trained_on
            accuracy = f"{100 * card.results[0].value:.2f}%" if card.results else "-"
        except InputError as error:
            tqdm.write(f"sj-ottt: warning: {error}", file=sys.stderr)
            accuracy = trained_on = "-"
        size = f"{entry.file.stat().st_size / 1e6:.1f}" if entry.file.is_file() else "missing"
        channels, classes = entry.cfg["input_size"][0], entry.cfg["num_classes"]
        rows.append((entry.name, str(channels), str(classes), size, accuracy, trained_on))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *numbers, trained_on in rows:
        cells = [f"{n:>{w}}" for n, w in zip(numbers, widths[1:-1], strict=True)]
        print("  ".join([f"{name:{widths[0]}}", *cells, trained_on]))


def _add_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="MODEL.TAG, as in sj-ottt zoo list")
    _add_where(parser)


def _show(args: argparse.Namespace) -> None:
    print(read_card(zoo.entry_named(args.name, args.zoo)).text.rstrip())


def _add_verify(parser: argparse.ArgumentParser) -> None:
    _add_name(parser)
    parser.add_argument(
        "--data",
        nargs="+",
        default=[],
        metavar="DATA",
        help="the data sets that the card names, as for sj-ottt train (default: where they are "
        "embedded or lie in the current folder)",
    )
    parser.add_argument(
        "--batch-size", type=int, default=64, metavar="N", help="default: %(default)s"
    )
    parser.add_argument("--device", default="auto", help="default: %(default)s")


def _verify(args: argparse.Namespace) -> None:
    from sj_ottt.run.zoo_verify import verify

    rows = verify(args.name, args.data, args.zoo, batch_size=args.batch_size, device=args.device)
    print("  card  measured  tolerance  samples  data")
    for row in rows:
        figure = row.figure
        print(
            f"{100 * figure.value:5.2f}%  {100 * row.value:7.2f}%  {100 * figure.tolerance:8.2f}%  "
            f"{figure.samples:7}  {figure.data} ({figure.split}): "
            f"{'agrees' if row.agrees else 'DIFFERS'}"
        )
    if not all(row.agrees for row in rows):
        raise InputError(
            f"{args.name}: what was measured is not what its card says; give the data that it was "
            "measured on, or tell who made the weights"
        )


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", metavar="RUN", help="the --out of a finished run")
    _add_target(parser)
    parser.add_argument("--about", default="", metavar="TEXT", help="what people should know")
    parser.add_argument(
        "--note",
        action="append",
        default=[],
        metavar="KEY=TEXT",
        help="more of where they come from, such as commit=daa5c1c; as often as needed",
    )
    parser.add_argument("--float16", action="store_true", help="store them in half the bytes")


def _export(args: argparse.Namespace) -> None:
    from sj_ottt.run.zoo_export import export_run

    notes = {}
    for note in args.note:
        key, equals, text = note.partition("=")
        if not (key and equals):
            raise InputError(f"--note {note}: give KEY=TEXT, such as commit=daa5c1c")
        notes[key] = text
    entry = export_run(
        args.run_folder,
        args.tag,
        args.to,
        about=args.about,
        license=args.license,
        notes=notes,
        float16=args.float16,
        replace=args.replace,
    )
    _say(entry)


def _add_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE.pth", help="a checkpoint of the paper's authors")
    parser.add_argument("--model", required=True, help="its architecture, see sj-ottt models")
    _add_target(parser)


def _import(args: argparse.Namespace) -> None:
    from sj_ottt.models.authors import import_checkpoint

    _say(
        import_checkpoint(
            args.file, args.model, args.tag, args.to, license=args.license, replace=args.replace
        )
    )


def _say(entry: zoo.ZooEntry) -> None:
    """Say where weights lie, and how they are loaded from there."""
    print(f"weights   {entry.file}  ({entry.file.stat().st_size / 1e6:.1f} MB)")
    print(f"card      {entry.card}")
    if entry.folder in (zoo.own_folder(), zoo.shipped_folder()):
        print(f'load      timm.create_model("{entry.name}", pretrained=True)')
        return
    print(
        f'load      timm.create_model("{entry.arch}", pretrained=True, '
        f'pretrained_cfg_overlay=dict(file="{entry.file}"))'
    )
    print(f"or        set SJ_OTTT_ZOO={shlex.quote(str(entry.folder))}, and load {entry.name}")
    print(
        f"share     upload both to a model hub as model.safetensors and README.md, and load with\n"
        f'          pretrained_cfg_overlay=dict(hf_hub_id="USER/NAME", '
        f"num_classes={entry.cfg['num_classes']}, input_size={tuple(entry.cfg['input_size'])})"
        + "".join(f', {name}="{value}"' for name, value in entry.options.items())
    )


def add(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands of ``sj-ottt zoo``."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, text, fill, run in (
        ("list", "list the weights that ship and the user's own", _add_where, _list),
        ("show", "print the card of weights", _add_name, _show),
        ("verify", "evaluate weights again and compare with their card", _add_verify, _verify),
        ("export", "put the best weights of a run into a zoo, with a card", _add_export, _export),
        ("import", "put a checkpoint of the paper's authors into a zoo", _add_import, _import),
    ):
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.set_defaults(run=run)
        fill(command)
