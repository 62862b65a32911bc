"""Python processes as good as new, which need no seconds to import PyTorch.

    python("-m", "sj_ottt", "models").stdout

They are forked from a process that has imported what the package stands on, and nothing of the
package itself.
"""

import functools
import gc
import json
import os
import runpy
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[1]
IMPORTED = (
    "matplotlib.pyplot",
    "sklearn.datasets",
    "spikingjelly.activation_based.functional",
    "spikingjelly.activation_based.layer",
    "spikingjelly.activation_based.learning",
    "spikingjelly.activation_based.neuron",
    "timm",
    "torch.utils.tensorboard",
)


def python(*args: object, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m MODULE ...``, ``python -c CODE ...`` or ``python FILE ...`` to its end."""
    server = _server()
    with tempfile.TemporaryDirectory(prefix="fresh") as folder:
        said = [os.path.join(folder, name) for name in ("out", "error")]
        job = [*map(str, args)], str(cwd), {**os.environ, **environment}, said
        print(json.dumps(job), file=server.stdin, flush=True)
        code = int(server.stdout.readline())
        out, error = (Path(path).read_text(encoding="utf-8") for path in said)
    return subprocess.CompletedProcess(job[0], code, out, error)


@functools.cache
def _server() -> subprocess.Popen:
    """Start the process that others are forked from; it ends with this one."""
    return subprocess.Popen(
        [sys.executable, "-P", __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def _serve() -> None:
    for name in IMPORTED:
        import_module(name)
    gc.freeze()  # so that no child looks through all of it when it ends
    for line in sys.stdin:
        child = os.fork()
        if not child:
            return _become(*json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _become(args: list[str], cwd: str, environment: dict[str, str], said: list[str]) -> None:
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for number, path in enumerate([os.devnull, *said]):
        flags = os.O_CREAT | os.O_WRONLY if number else os.O_RDONLY
        os.dup2(os.open(path, flags), number)
    option = args.pop(0) if args[0] in ("-c", "-m") else None
    sys.argv = args
    sys.path.insert(0, str(Path(args[0]).parent) if option is None else cwd)
    if option == "-c":
        exec(args[0], {"__name__": "__main__"})
    elif option == "-m":
        runpy.run_module(args[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(args[0], run_name="__main__")


if __name__ == "__main__":
    _serve()
