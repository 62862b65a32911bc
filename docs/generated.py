"""Tables and lists of the site that are made from the code and from measured files."""

import argparse
import csv
import importlib
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
ZOO = ROOT / "model_zoo"
RESULTS = ROOT / "benchmarks" / "results"
TRANSFER = "transfer*.csv"


def make(line: str) -> str:
    """Return the Markdown that a line ``NAME ARGUMENTS`` stands for.

    Raises:
        ValueError: There is no such NAME.
    """
    name, *arguments = shlex.split(line)
    if name not in MAKERS:
        raise ValueError(f"<!-- make: {line} -->: use one of {', '.join(MAKERS)}")
    return MAKERS[name](*arguments)


def api(module: str, *more: str) -> str:
    """Return mkdocstrings' lines for the public names of modules that are this package's own.

    Names of SpikingJelly that come through a module stay out.
    """
    lines = []
    for name in (module, *more):
        found = importlib.import_module(name)
        for public in dict.fromkeys(getattr(found, "__all__", ())):
            value = getattr(found, public)
            if getattr(value, "__module__", "").startswith("sj_ottt."):
                lines.append(f"::: {name}.{public}")
    return "\n\n".join(lines)


def names(module: str, *chosen: str) -> str:
    """Return mkdocstrings' lines for some names of a module without ``__all__``."""
    return "\n\n".join(f"::: {module}.{name}" for name in chosen)


def command() -> str:
    """Return a section for each subcommand of ``sj-ottt``: usage, arguments, defaults."""
    from sj_ottt.cli.main import _parser

    return "\n\n".join(_sections(_parser(), 2))


def _sections(parser: argparse.ArgumentParser, level: int) -> Iterable[str]:
    below = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    for action in below:
        for name, sub in action.choices.items():
            text = next((c.help for c in action._choices_actions if c.dest == name), "") or ""
            yield f"{'#' * level} {sub.prog}\n\n{text[:1].upper()}{text[1:]}."
            yield from _arguments(sub)
            yield from _sections(sub, level + 1)


def _arguments(parser: argparse.ArgumentParser) -> Iterable[str]:
    formatter = parser._get_formatter()
    for group in parser._action_groups:
        rows = []
        for action in group._group_actions:
            if isinstance(action, (argparse._HelpAction, argparse._SubParsersAction)):
                continue
            if action.help == argparse.SUPPRESS:
                continue
            optional = formatter._get_default_metavar_for_optional
            positional = formatter._get_default_metavar_for_positional
            default = (optional if action.option_strings else positional)(action)
            shown = formatter._format_args(action, default)
            flags = ", ".join(action.option_strings)
            call = f"{flags} {shown}".strip() if action.nargs != 0 else flags
            meaning = formatter._expand_help(action) if action.help else ""
            rows.append((f"`{call}`", meaning))
        if rows:
            if group.title not in ("positional arguments", "options"):
                yield f"**{group.title}**"
            yield table(("argument", "meaning"), rows)


def models() -> str:
    """Return the table of models: size, classes, input and weights."""
    import timm

    from sj_ottt import zoo

    rows = []
    for row in zoo.model_rows():
        name = row["name"]
        if name.startswith("test_"):
            continue
        cfg = timm.get_pretrained_cfg(name)
        shipped = [tag for tag in row["weights"] if (ZOO / f"{name}.{tag}.md").exists()]
        weights = ", ".join(f"[`{tag}`](#{name}{tag})" for tag in shipped)
        size = " × ".join(map(str, cfg.input_size))
        rows.append((f"`{name}`", f"{row['params'] / 1e6:.2f} M", size, cfg.num_classes, weights))
    return table(("name", "parameters", "input C × H × W", "classes", "weights"), rows)


def weights() -> str:
    """Return the table of the weights that ship: their input, their training, what they reach."""
    from sj_ottt import zoo
    from sj_ottt.zoo.cards import read_card

    rows = []
    for entry in zoo.zoo_entries(zoo.shipped_folder()).values():
        card = read_card(entry)
        size = " × ".join(map(str, entry.cfg["input_size"]))
        reached = "; ".join(f"{100 * f.value:.2f}% ({f.data})" for f in card.results)
        rows.append((f"`{entry.name}`", size, card.trained_on, reached or "not stated"))
    return table(("weights", "input C × H × W", "trained on", "test accuracy by itself"), rows)


def cards() -> str:
    """Return the cards of the shipped weights: the facts in front of each as a table."""
    texts = []
    for path in sorted(ZOO.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        facts = {}
        if text.startswith("---\n"):
            front, _, text = text.removeprefix("---\n").partition("\n---\n")
            facts = yaml.safe_load(front)
        heading = rf"### \1 {{#{path.stem.replace('.', '')}}}"
        text = re.sub(r"^# (.+)$", heading, text.strip(), count=1, flags=re.MULTILINE)
        texts.append(f"{text}\n\n{_facts(facts)}".strip())
    return "\n\n".join(texts)


def _facts(facts: Mapping[str, Any]) -> str:
    """Return what programs read of a card, for people."""
    rows: list[tuple[str, object]] = []
    for name, value in facts.items():
        if name == "results":
            for one in value:
                said = f"{100 * one['value']:.2f}% on {one['samples']} samples of {one['data']}"
                rows.append((str(one["metric"]), f"{said} ({one['split']})"))
        elif isinstance(value, Mapping):
            rows += [(str(key), _plain(of)) for key, of in value.items()]
        elif name != "name":
            rows.append((name, _plain(value)))
    return table(("fact", "value"), rows) if rows else ""


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {of}" for key, of in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def formats() -> str:
    """Return the table of readers."""
    from sj_ottt.data.recordings.readers import READERS

    rows = [
        (reader.name, " ".join(f"`{s}`" for s in reader.suffixes), _how(reader.sniff))
        for reader in READERS
    ]
    return table(("format", "endings", "told by"), rows)


def _how(sniff: Callable | None) -> str:
    return "its ending" if sniff is None else "its content"


def rules() -> str:
    """Return the learning rules of the table, with the first line of their docstrings."""
    from sj_ottt.learning.rules import RULES, VARIANTS

    rows = []
    for name in RULES:
        doc = sys.modules[f"sj_ottt.learning.rules.{name}"].__doc__ or ""
        variants = ", ".join(f"`{v}`" for v in VARIANTS[name]) or "none"
        rows.append((f"`{name}`", doc.splitlines()[0], variants))
    return table(("rule", "what it computes", "variants"), rows)


def measured(pattern: str, columns: str = "") -> str:
    """Return a table of a file of ``benchmarks/results``, and nothing while there is none.

    Args:
        pattern: Of the file's name; the last file that fits is taken.
        columns: ``header: title; header: title``, which columns and what to call them; all of them
            where this is empty.
    """
    rows = read_results(pattern)
    if not rows:
        return ""
    pairs = (part.split(":") for part in columns.split(";") if part)
    titles = {header.strip(): title.strip() for header, title in pairs}
    titles = titles or {name: name for name in rows[0]}
    return table(tuple(titles.values()), [[row[name] for name in titles] for row in rows])


def transfer() -> str:
    """Return the curve and the table of `benchmarks.transfer`, and nothing while there are none."""
    if not read_results(TRANSFER):
        return ""
    return "\n\n".join(
        (
            "## The transfer curve",
            "![Test accuracy against the number of recordings a class: networks that start from "
            "the shipped weights, and the same networks from scratch](picture:transfer)",
            "Mean and standard deviation in percent; a training of the characters is counted for "
            "each of the two recordings that it can learn from.",
            measured(TRANSFER),
        )
    )


_GPU_PARTS = {
    "kernel": "Bandwidth of the kernels",
    "host": "Time that the host takes for a neuron's step",
    "step": "Time of a training step",
    "profile": "Launches, and how busy the GPU is",
    "memory": "Memory",
    "training": "Short trainings",
}


def gpu() -> str:
    """Return what `benchmarks.gpu` has measured, a section a card; says so while there is none."""
    paths = gpu_results()
    if not paths:
        return "No GPU's results are in `benchmarks/results` yet."
    parts = []
    for path in paths:
        rows = read_results(path.name)
        card = next(row for row in rows if row["what"] == "card")
        parts += [f"## {card['note'].split(';')[0]}", f"{card['run']}; {card['note']}"]
        if any(row["what"] == "step" and row["network"] == "vgg" for row in rows):
            parts.append(
                "![Milliseconds per sample of a training step of the paper's VGG against the "
                "batch size, a line for each side](picture:gpu_speed)"
            )
        for what, heading in _GPU_PARTS.items():
            some = [row for row in rows if row["what"] == what and (row["value"] or row["MiB"])]
            if not some:
                continue
            columns = [name for name in some[0] if name != "what" and any(r[name] for r in some)]
            body = table(columns, [[row[name] for name in columns] for row in some])
            parts += [f"### {heading}", body]
        failed = [row for row in rows if row["note"].startswith("failed")]
        if failed:
            columns = ["what", "network", "batch", "dtype", "run", "note"]
            body = table(columns, [[row[name] for name in columns] for row in failed])
            parts += ["### Not measured, because it failed", body]
    return "\n\n".join(parts)


def gpu_results() -> list[Path]:
    """Return the files that `benchmarks.gpu` has written, without its first looks."""
    paths = sorted(RESULTS.glob("gpu-*.csv"))
    return [path for path in paths if not path.name.startswith("gpu-quick-")]


def read_results(pattern: str) -> list[dict[str, str]]:
    """Return the rows of the last file of ``benchmarks/results`` that fits, or none."""
    paths = sorted(RESULTS.glob(pattern))
    if not paths:
        return []
    with paths[-1].open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def changelog() -> str:
    """Return the change log, without its heading."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    return text.partition("\n")[2].strip()


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = (head, ["---"] * len(head), *rows)
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(value: object) -> str:
    """Return text for a cell: bars split cells but within code."""
    parts = str(value).replace("\n", " ").split("`")
    return "`".join(part if i % 2 else part.replace("|", "\\|") for i, part in enumerate(parts))


MAKERS: dict[str, Callable[..., str]] = {
    maker.__name__: maker
    for maker in (
        api,
        names,
        command,
        models,
        weights,
        cards,
        formats,
        rules,
        measured,
        transfer,
        gpu,
        changelog,
    )
}
