"""What the build adds to the pages, and the pages against the navigation and the code."""

import re
import xml.etree.ElementTree as ElementTree

import pytest
import timm
import yaml

import sj_ottt
from docs import generated, pictures
from docs.pictures import style
from sj_ottt.run.config import TrainConfig
from tests.docs.blocks import PAGES, ROOT

DOCS = ROOT / "docs"


def navigation() -> set[str]:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    return set(re.findall(r": ([\w/-]+\.md)$", text, re.MULTILINE))


def test_every_page_is_in_the_navigation():
    assert navigation() == {str(p.relative_to(DOCS)) for p in PAGES if DOCS in p.parents}


def test_every_generated_part_is_one():
    for path in PAGES:
        for line in re.findall(r"<!-- make: (.+?) -->", path.read_text(encoding="utf-8")):
            assert line.split()[0] in generated.MAKERS, f"{path}: {line}"
    with pytest.raises(ValueError, match="use one of"):
        generated.make("none")


def test_every_picture_is_used_and_drawn():
    used = set()
    for path in (*PAGES, DOCS / "generated.py"):
        used |= set(re.findall(r"\(picture:([\w-]+)\)", path.read_text(encoding="utf-8")))
    assert used == set(pictures.PICTURES)


@pytest.mark.slow
@pytest.mark.parametrize("name", pictures.PICTURES)
def test_a_picture_takes_the_colours_of_the_page(name):
    svg = pictures.inline(name, 'what "it" shows')
    tree = ElementTree.fromstring(svg.replace("xlink:", "").replace("&#x27;", "'"))
    assert tree.attrib["aria-label"] == 'what "it" shows'
    ids = [element.attrib["id"] for element in tree.iter() if "id" in element.attrib]
    assert len(ids) == len(set(ids))
    # No colour that would stay as it is where the page is dark.
    bare = re.sub(r"var\(--pic-\w+, #\w+\)", "", svg)
    assert not re.findall(r"#[0-9a-fA-F]{6}\b", bare)


def test_the_style_sheet_has_the_colours_of_the_pictures():
    sheet = (DOCS / "assets" / "site.css").read_text(encoding="utf-8")
    light, dark = sheet.split("[data-md-color-scheme", 1)
    for name, colours in style.COLOURS.items():
        assert f"--pic-{name}: {colours[0]};" in light
        assert f"--pic-{name}: {colours[1]};" in dark


@pytest.mark.parametrize("name", pictures.ALONE)
def test_a_picture_of_the_readme_is_the_one_that_is_drawn(name):
    file = ROOT / pictures.ALONE[name]
    drawn = style.alone(pictures.PICTURES[name]())
    assert file.read_text(encoding="utf-8") == drawn, "run `python -m docs.pictures`"


def test_the_commands_page_has_every_option():
    page = generated.command()
    for name in TrainConfig.option_names():
        assert f"`--{name.replace('_', '-')}" in page, name
    for heading in ("## sj-ottt train", "### sj-ottt data slice", "## sj-ottt export"):
        assert heading in page


@pytest.mark.slow
def test_the_models_page_has_every_model_and_its_card():
    page = generated.models()
    for name in timm.list_models(module="ottt_vgg") + timm.list_models(module="ltc_nets"):
        assert (f"`{name}`" in page) != name.startswith("test_")
    cards = generated.cards()
    files = [path.stem for path in (ROOT / "model_zoo").glob("*.safetensors")]
    assert files and all(f"`{name}`" in generated.weights() for name in files)
    links = re.findall(r"\(#([\w-]+)\)", page)
    assert links and all(f"{{#{link}}}" in cards for link in links)


def test_the_api_pages_have_every_public_name():
    from sj_ottt import layer, learning, neuron

    for module in (layer, learning, neuron):
        lines = generated.api(module.__name__)
        classes = {name: value for name, value in vars(module).items() if isinstance(value, type)}
        own = [name for name, value in classes.items() if value.__module__.startswith("sj_ottt.")]
        assert len(own) > 3
        assert all(f"::: {module.__name__}.{name}\n" in f"{lines}\n" for name in own)


def test_results_that_are_not_there_leave_no_table():
    assert generated.measured("no-such-*.csv") == ""


def test_the_site_asks_no_other_server():
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert yaml.safe_load(config.split("palette:")[0])["theme"]["font"] is False
    assert "http" not in (DOCS / "assets" / "site.css").read_text(encoding="utf-8")


def test_the_citation_names_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == sj_ottt.__version__
    assert {"cff-version", "message", "title", "authors", "license"} <= citation.keys()


def test_the_changelog_has_its_form():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[(.+?)\]", text, re.MULTILINE)
    assert versions[0] == "Unreleased" or versions[0] == sj_ottt.__version__
    kinds = set(re.findall(r"^### (.+)$", text, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_written_figures_are_those_of_the_measured_files():
    """Where a sentence repeats a figure of a file, a newer file asks for a newer sentence."""
    ours, theirs = "sj_ottt OTTT-A", "spikingjelly OTTT-A"
    step = {
        (row["network"], row["batch"], row["run"]): row
        for row in generated.read_results("step-cpu*.csv")
    }
    memory = {row["run"]: row for row in generated.read_results("memory-cpu*.csv")}
    ratios = {n: step["vgg", n, ours]["ratio"] for n in ("1", "16")}
    peaks = {run: round(float(memory[run]["T=64"])) for run in (ours, theirs, "spikingjelly BPTT")}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"{ratios['16']} (batch 16), {ratios['1']} (batch 1)" in readme
    shown = (
        f"{peaks[ours]} MiB; SpikingJelly's OTTT {peaks[theirs]}, BPTT {peaks['spikingjelly BPTT']}"
    )
    assert shown in readme
    card = [row for path in generated.gpu_results() for row in generated.read_results(path.name)]
    on_card = {
        (row["batch"], row["run"]): f"{float(row['value']):.1f}"
        for row in card
        if (row["what"], row["network"], row["dtype"]) == ("step", "vgg", "float32")
    }
    graph, bptt = "sj_ottt, chunk T, graph", "spikingjelly BPTT"
    large, small = ([on_card[n, run] for run in (graph, theirs, bptt)] for n in ("128", "1"))
    assert f"batch 128: {large[0]} ms; SpikingJelly's OTTT {large[1]}, BPTT {large[2]}" in readme
    assert f"Batch 1: {small[0]} ms; {small[1]}, {small[2]}" in readme
    speed = (DOCS / "benchmarks" / "speed.md").read_text(encoding="utf-8")
    floor = step["vgg", "16", ours]["to the floor"]
    for figure in (
        f"batch 16: ≤ 0.60 | {ratios['16']} |",
        f"batch 1: ≤ 0.35 | {ratios['1']} |",
        f"≤ 1.15 | {floor} |",
        f"bytes per neuron: ≤ 7 | {memory[ours]['bytes/neuron']} |",
        f"A step of a chunk takes {memory[f'{ours}, chunk T']['a step of a chunk']} more",
        f"layers: ≤ 0.60 | {step['nf_resnet34', '8', ours]['ratio']} |",
    ):
        assert figure in speed, figure


def test_the_build_counts_warnings():
    """With --quiet, mkdocs hears no warning, and --strict finds none to refuse."""
    (line,) = re.findall(r".*mkdocs build.*", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert "--strict" in line and "--quiet" not in line
