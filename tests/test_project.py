"""The shape of the project: imports point down, and importing it costs and needs little."""

import ast
import subprocess
import sys
from pathlib import Path

import sj_ottt

ROOT = Path(__file__).parent.parent
PACKAGE = Path(sj_ottt.__file__).parent

# A module may import those of a lower level only.
LEVELS = {
    "errors": 0,
    "files": 1,
    "trace": 1,
    "functional": 2,
    "data": 2,
    "config": 2,
    "zoo": 2,
    "checkpoint": 2,
    "eventlog": 2,
    "surrogate": 2,
    "feedback": 3,
    "fptt": 3,
    "ltc": 3,
    "gather": 3,
    "kernels": 3,
    "neuron": 4,
    "layer": 4,
    "rules": 5,
    "conversion": 6,
    "learning": 6,
    "models": 6,
    "finetune": 6,
    "plots": 6,
    "samples": 6,
    "analysis": 7,
    "evaluation": 7,
    "gallery": 7,
    "engine": 8,
    "live": 8,
    "report": 8,
    "data_cli": 8,
    "adapt": 9,
    "cli": 10,
    "__main__": 11,
}


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


def sources():
    for file in sorted(PACKAGE.rglob("*.py")):
        room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room not in ("__init__", "model_zoo"):
            yield room, file


def test_imports_point_down():
    for room, file in sources():
        for name in imports(file):
            parts = name.split(".")
            if parts[0] == "sj_ottt" and len(parts) > 1 and parts[1] in LEVELS:
                other = parts[1]
                assert other == room or LEVELS[other] < LEVELS[room], f"{file}: imports {name}"


def test_timm_is_imported_in_its_rooms_only():
    for room, file in sources():
        if any(name.split(".")[0] == "timm" for name in imports(file)):
            assert room in ("models", "zoo"), file


def run_fresh(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT
    ).stdout


def test_import_is_light():
    """No CUDA context, no CuPy, no datasets, no plotting; next to nothing beyond its parents."""
    out = run_fresh(
        "import sys, time, torch, timm\n"
        "from spikingjelly.activation_based import neuron, layer, functional, surrogate\n"
        "before = set(sys.modules)\n"
        "import sj_ottt\n"
        "print(torch.cuda.is_initialized(), *sorted(set(sys.modules) - before))"
    )
    initialized, *modules = out.split()
    assert initialized == "False"
    assert modules and all(m.split(".")[0] == "sj_ottt" for m in modules), modules


def test_import_registers_the_models():
    assert run_fresh("import sj_ottt, timm; print(timm.is_model('ottt_nf_resnet34'))") == "True\n"
