"""Every block of Python and every command of the README and of the site, run from top to bottom.

A page is a story: its blocks share a folder and names, and a block is run after those above it.
"""

import re
from pathlib import Path

import pytest
import torch

import sj_ottt  # noqa: F401  (importing it registers the models)
from tests.docs.blocks import LANGUAGES, PAGES, ROOT, Block, blocks, commands
from tests.docs.commands import carry_out
from tests.docs.given import give

BLOCKS = {path: blocks(path) for path in PAGES}
RUN = [block for found in BLOCKS.values() for block in found if block.language in ("python", "sh")]


class Story:
    """A page as it is run: its folder, the names of its Python, and how far it went."""

    def __init__(self, path: Path, folder: Path, store: Path) -> None:
        self.folder, self.names, self.done = folder, {"__name__": "page"}, 0
        self.blocks = BLOCKS[path]
        give(path.read_text(encoding="utf-8"), folder, store)

    def run_up_to(self, last: Block, monkeypatch) -> None:
        while self.done <= self.blocks.index(last):
            block = self.blocks[self.done]
            self.done += 1
            if not block.needs:
                self._run(block, monkeypatch)

    def _run(self, block: Block, monkeypatch) -> None:
        if block.file:
            path = self.folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            torch.manual_seed(0)
            exec(compile(block.text, str(block), "exec"), self.names)
            if isinstance(self.names.get("loss"), torch.Tensor):
                assert self.names["loss"].isfinite()
        elif block.language == "sh":
            for words in commands(block.text):
                with monkeypatch.context() as patch:
                    carry_out(words, patch)


@pytest.fixture(scope="module")
def stories(tmp_path_factory) -> dict[str, Story]:
    return {}


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("given")


@pytest.mark.slow
@pytest.mark.parametrize("block", RUN, ids=str)
def test_block_runs(block, stories, store, tmp_path_factory, monkeypatch):
    if block.needs:
        pytest.skip(f"{block} {block.needs}")
    if block.page not in stories:
        folder = tmp_path_factory.mktemp(Path(block.page).stem)
        monkeypatch.chdir(folder)
        stories[block.page] = Story(ROOT / block.page, folder, store)
    story = stories[block.page]
    monkeypatch.chdir(story.folder)
    monkeypatch.syspath_prepend(str(story.folder))
    monkeypatch.setenv("SJ_OTTT_ZOO", str(story.folder / "zoo"))
    story.run_up_to(block, monkeypatch)


def test_there_are_blocks_on_every_page_that_shows_how():
    for path, found in BLOCKS.items():
        if path.parent.name in ("tutorials", "how-to"):
            assert any(block.language in ("python", "sh") for block in found), path


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_page_is_well_formed(path):
    text = path.read_text(encoding="utf-8")
    if text.startswith("---\n"):  # the facts of a card, which programs read
        text = text.partition("\n---\n")[2].strip()
    assert text.startswith("# "), "a page has a heading"
    assert len(re.findall(r"^ *```", text, re.MULTILINE)) == 2 * len(BLOCKS[path]), "open fence"
    for block in BLOCKS[path]:
        assert block.language in LANGUAGES, block
    for alt, address in re.findall(r"!\[([^\]]*)\]\(([^)\s]+)", text):
        assert len(alt) > 15, f"{address} needs words for those who do not see it"


def test_a_broken_block_is_seen(tmp_path, store, monkeypatch):
    """The control."""
    page = ROOT / "docs" / "broken.md"
    for text in ("1 / 0", "import sj_otttt"):
        monkeypatch.setitem(BLOCKS, page, [Block("docs/broken.md", 1, "python", "", text)])
        monkeypatch.setattr(type(page), "read_text", lambda *args, **kwargs: "# Broken")
        story = Story(page, tmp_path, store)
        with pytest.raises((ZeroDivisionError, ImportError)):
            story.run_up_to(story.blocks[0], monkeypatch)


@pytest.mark.parametrize(
    "line",
    [
        "sj-ottt train --dat x",
        "sj-ottt trains",
        "python -m benchmarks step --batches 1",
        "python examples/none.py",
        "make trains",
        'pip install "sj-ottt[everything]"',
        "rm -rf .",
    ],
)
def test_a_wrong_command_is_seen(line, tmp_path, monkeypatch):
    """The control."""
    monkeypatch.chdir(tmp_path)
    (words,) = commands(line)
    with pytest.raises((AssertionError, SystemExit)):
        carry_out(words, monkeypatch)


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 1000
    shown = [block.language for block in BLOCKS[ROOT / "README.md"]]
    assert shown == ["sh", "python", "python", "sh"]  # two commands, and three short stories


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_every_file_it_links_to_is_there(page):
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / page).read_text())
    assert all((ROOT / link).exists() for link in links), links


def test_every_room_that_contributing_names_is_there():
    rooms = re.findall(r"`(\w+/(?:\w+/)*)`", (ROOT / "CONTRIBUTING.md").read_text())
    assert len(rooms) > 15
    for room in rooms:
        assert [*ROOT.glob(room), *ROOT.glob(f"sj_ottt/**/{room}")], room
