"""The shape of the project: imports point down, and importing it costs and needs little."""

import ast
import configparser
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import sj_ottt
from tests.fresh import python

ROOT = Path(__file__).parent.parent
PACKAGE = Path(sj_ottt.__file__).parent

# From the bottom to the top: a room may import those of the lines above its own.
ROOMS = (
    {"errors"},
    {"_passthrough", "_files"},
    {"_parallel", "_yaml", "_ops", "surrogate"},
    {"functional", "layer", "data"},
    {"learning", "zoo", "plots"},
    {"neuron"},
    {"conversion", "models"},
    {"run"},
    {"inference", "analysis"},
    {"export"},
    {"cli"},
    {"__main__"},
)
ROOMS_OF_DATA = (
    {"saccade"},
    {"recordings", "transforms", "encodings", "activity"},
    {"frames", "splits", "augmentation", "loading"},
    {"simulate"},
    {"sets"},
    {"prepare", "preprocessing"},
)


def imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def sources(folder: Path = PACKAGE):
    """The room and the path of each file, but for what stands at the folder's door."""
    for file in sorted(folder.rglob("*.py")):
        room = file.relative_to(folder).parts[0].removesuffix(".py")
        if room not in ("__init__", "model_zoo"):
            yield room, file


@pytest.mark.parametrize(
    ("house", "floors"),
    [("sj_ottt", ROOMS), ("sj_ottt.data", ROOMS_OF_DATA)],
    ids=["sj_ottt", "sj_ottt.data"],
)
def test_imports_point_down(house, floors):
    level = {room: i for i, floor in enumerate(floors) for room in floor}
    for room, file in sources(ROOT.joinpath(*house.split("."))):
        assert room in level, f"{file}: give the room {room} its floor in this test"
        for name in imports(file):
            inside, _, rest = name.partition(f"{house}.")
            other = rest.split(".")[0]
            if not inside and other in level:
                assert other == room or level[other] < level[room], f"{file}: imports {name}"


def test_no_module_imports_itself_in_a_circle():
    modules = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts): imports(file)
        for _, file in sources()
    }
    graph = {
        name: {found for found in names if found in modules} for name, names in modules.items()
    }
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_the_package_imports_nothing_that_stands_beside_it():
    for _, file in sources():
        for name in imports(file):
            assert name.split(".")[0] not in ("benchmarks", "examples", "model_zoo", "tests"), file


def test_timm_is_imported_in_its_rooms_only():
    for room, file in sources():
        if any(name.split(".")[0] == "timm" for name in imports(file)):
            assert room in ("models", "zoo"), file


@pytest.mark.slow
def test_import_is_light():
    """No CUDA context, no CuPy, no datasets, no plotting; next to nothing beyond its parents."""
    code = (
        "import sys, time, torch, timm\n"
        "from spikingjelly.activation_based import neuron, layer, functional, surrogate\n"
        "before = set(sys.modules)\n"
        "import sj_ottt\n"
        "print(torch.cuda.is_initialized(), *sorted(set(sys.modules) - before))"
    )
    # Where nothing has been imported before.
    command = [sys.executable, "-c", code]
    out = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    initialized, *modules = out.split()
    assert initialized == "False"
    assert modules and all(m.split(".")[0] == "sj_ottt" for m in modules), modules


@pytest.mark.slow
def test_import_registers_the_models():
    code = "import sj_ottt, timm; print(timm.is_model('ottt_nf_resnet34'))"
    assert python("-c", code).stdout == "True\n"


def test_the_wheel_takes_every_room():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    rooms = {".".join(file.parent.relative_to(ROOT).parts) for file in PACKAGE.rglob("__init__.py")}
    assert set(config["options"]["packages"].split()) == rooms | {"sj_ottt.model_zoo"}


def test_the_wheel_takes_every_file_beside_the_modules():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    taken = set()
    for package, patterns in config["options.package_data"].items():
        if not package.endswith("model_zoo"):
            folder = ROOT.joinpath(*package.split("."))
            taken |= {file for pattern in patterns.split() for file in folder.glob(pattern)}
    files = {f for f in PACKAGE.rglob("*") if f.is_file() and "__pycache__" not in f.parts}
    assert taken == {file for file in files if file.suffix != ".py"}


def test_no_file_outgrows_its_reader():
    for file in (f for kind in ("py", "js", "css", "html") for f in PACKAGE.rglob(f"*.{kind}")):
        assert len(file.read_text(encoding="utf-8").splitlines()) <= 450, file
    beside = {file.stem for file in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert len(beside) <= 9, beside
