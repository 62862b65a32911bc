"""The fenced blocks of a page, and the commands in them."""

import re
import shlex
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "model_zoo").glob("*.md")),
)
"""What is shown to users; the cards of weights are a part of the page of models."""

LANGUAGES = ("python", "sh", "csv", "yaml", "text")

_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<head>[^\n`]*)\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: Its file, from the project's root.
        line: Where it begins, from 1.
        language: What stands behind the fence.
        title: What stands above it on the page: the name of a file, or why it needs more than a
            computer ("needs a GPU").
        text: What is in it.
    """

    page: str
    line: int
    language: str
    title: str
    text: str

    @property
    def needs(self) -> str | None:
        """What it needs that a test has not, or None."""
        return self.title if self.title.startswith("needs ") else None

    @property
    def file(self) -> str | None:
        """The file that it shows, or None."""
        return self.title if self.title and not self.needs else None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(path: Path) -> list[Block]:
    """Return the fenced blocks of a page, from top to bottom."""
    page = path.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(page):
        language, _, rest = match["head"].strip().partition(" ")
        title = re.search(r'title="([^"]*)"', rest)
        found.append(
            Block(
                str(path.relative_to(ROOT)),
                page.count("\n", 0, match.start()) + 1,
                language,
                title[1] if title else "",
                textwrap.dedent(match["text"]),
            )
        )
    return found


def commands(text: str) -> list[list[str]]:
    """Return the arguments of each command, a pipe as ``|`` among them."""
    lines = text.replace("\\\n", " ").splitlines()
    split = (shlex.split(line, comments=True) for line in lines)
    return [words for words in split if words]
