"""How a command of a page is carried out in a test: as it stands, on tiny data."""

import argparse
import configparser
import importlib
import re
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from sj_ottt.cli import main as cli
from tests.docs.blocks import ROOT
from tests.inference.recordings import as_text, long_recording

# Appended to a command, for the last of two equal flags counts.
SHORT = {
    "train": ("--epochs", "1", "--device", "cpu"),
    "eval": ("--device", "cpu"),
    "analyze": ("--device", "cpu", "--samples", "3"),
    "predict": ("--device", "cpu"),
    "adapt": ("--device", "cpu"),
}
SHORT_EXAMPLES = {
    "switch_from_spikingjelly.py": ("--epochs", "1", "--limit", "100"),
    "train_static_images.py": ("--epochs", "1", "--steps", "2", "--limit", "100"),
    "finetune_own_dvs.py": ("--epochs", "1"),
    "fptt_add.py": ("--batches", "2", "--hidden", "8", "--batch-size", "4"),
}
# What is in capitals stands for the reader's own: such a command is parsed, not run.
_OWN = re.compile(r"\b[A-Z]{2,}(?:_[A-Z]+)*\b")
_KNOWN = re.compile(r"MY_RECORDINGS|MY_DIGITS|NEW\.raw|session_C")


class Parsed(Exception):
    """The arguments were taken; nothing more is wanted."""


def carry_out(words: Sequence[str], monkeypatch) -> None:
    """Run a command, or as much of it as a test can.

    Raises:
        AssertionError: If it fails, or is none that pages may show.
    """
    if "|" in words:
        place = words.index("|")
        assert words[:place] == ["camera-program"], words
        piped = Path("piped.csv")
        piped.write_bytes(as_text(long_recording((0, 1, 2))))
        monkeypatch.setattr(sys, "stdin", piped.open())
        words = words[place + 1 :]
    while re.fullmatch(r"[A-Z_]+=\w+", words[0]):
        monkeypatch.setenv(*words[0].split("="))
        words = words[1:]
    program, *arguments = words
    arguments = [_as_here(argument) for argument in arguments]
    match program, arguments:
        case "sj-ottt", _:
            _sj_ottt(arguments)
        case "make", [target]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target
        case "pip", ["install", *what]:
            _installs(what)
        case "python", ["-m", module, *rest]:
            _parse(importlib.import_module(_main_of(module)), rest, monkeypatch)
        case "python", [script, *rest]:
            _script(Path(script), rest, monkeypatch)
        case _:
            raise AssertionError(f"{words}: no test knows how to run this")


def _as_here(argument: str) -> str:
    """Commands stand in the project's folder, tests run in another one; ndigits takes minutes."""
    if argument == "ndigits":
        return "MY_DIGITS"
    inside = re.match(r"(examples|benchmarks|docs)/", argument) and (ROOT / argument).exists()
    return str(ROOT / argument) if inside else argument


def _is_anybodys(arguments: Sequence[str]) -> bool:
    return not any(_OWN.search(_KNOWN.sub("", argument)) for argument in arguments)


def _sj_ottt(arguments: list[str]) -> None:
    # A page of Python trains NF-ResNet-34; here its checkpoints alone would take seconds.
    if not _is_anybodys(arguments) or "ottt_nf_resnet34" in arguments:
        cli._parser().parse_args(arguments)
        return
    more = () if "--resume" in arguments else SHORT.get(arguments[0], ())
    if "--idle" in arguments:
        more = (*more, "--idle", "0.1")
    try:
        code = cli.main([*arguments, *more])
    except SystemExit as stop:
        code = stop.code
    assert code in (0, None), arguments


def _main_of(module: str) -> str:
    return f"{module}.__main__" if (ROOT / module.replace(".", "/")).is_dir() else module


def _parse(module, arguments: Sequence[str], monkeypatch) -> None:
    """Have a program take its arguments, and stop there: its own tests run it."""
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(self, *args, **kwargs):
        parse(self, *args, **kwargs)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    monkeypatch.setattr(sys, "argv", [module.__name__, *arguments])
    try:
        module.main()
    except Parsed:
        return
    raise AssertionError(f"{module.__name__} {arguments}: takes no arguments")


def _script(script: Path, arguments: Sequence[str], monkeypatch) -> None:
    assert script.is_file(), f"{script} is missing"
    if not script.is_absolute():  # written by a block above
        runpy.run_path(str(script), run_name="__main__")
        return
    if script.name not in SHORT_EXAMPLES or not _is_anybodys(arguments):
        module = importlib.import_module(script.stem)  # examples/ is on the path
        _parse(module, arguments, monkeypatch)
        return
    monkeypatch.setattr(sys, "argv", [str(script), *arguments, *SHORT_EXAMPLES[script.name]])
    runpy.run_path(str(script), run_name="__main__")


def _installs(what: Sequence[str]) -> None:
    """Every extra that a page names is one, and every file is there."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = set(config["options.extras_require"])
    for name in what:
        for extra in re.findall(r"\[([\w,]+)\]", name):
            assert set(extra.split(",")) <= extras, name
        if name.endswith(".txt"):
            assert (ROOT / name).is_file(), name
