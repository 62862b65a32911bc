"""The kernels of `lif.cu` on this machine's processor, or on a GPU where there is one."""

import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from sj_ottt._ops import lif_backends, lif_fused, lif_gpu, lif_launch

COMPILER = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")


@functools.cache
def host_library(scalar: str, trace_type: str) -> ctypes.CDLL:
    """The kernels as plain C++; no flag is a constant there."""
    folder = Path(tempfile.mkdtemp(prefix="sj_ottt_kernels"))
    options = (
        "-std=c++17",
        "-O2",
        "-ffp-contract=off",
        "-shared",
        "-fPIC",
        "-Wall",
        "-Werror",
        "-Wno-psabi",
        "-Wno-unknown-pragmas",
    )
    names = (f"-DSCALAR={scalar}", f"-DTRACE={trace_type}")
    source = ("-x", "c++", str(lif_gpu.SOURCE))
    subprocess.run([COMPILER, *options, *names, *source, "-o", folder / "lif.so"], check=True)
    library = ctypes.CDLL(str(folder / "lif.so"))
    shutil.rmtree(folder)
    return library


def run_on_host(name, call, like, trace_dtype, flags, lanes):
    library = host_library(lif_launch.SCALARS[like.dtype], lif_launch.TRACES[trace_dtype])
    getattr(library, name)(ctypes.c_void_p(call.ctypes.data))


@pytest.fixture
def on_host(monkeypatch):
    """Let the kernels for GPUs run on this machine's processor."""
    if COMPILER is None:
        pytest.skip("needs a C++ compiler (Debian: apt install g++)")
    monkeypatch.setattr(lif_launch, "_run", run_on_host)
    monkeypatch.setattr(lif_launch, "_is_host", lambda x: False)
    monkeypatch.setattr(lif_gpu, "missing", lambda *_: None)
    monkeypatch.setattr(lif_fused, "_needs_one_order", lambda x: False)
    monkeypatch.setattr(lif_backends, "_is_placed", lambda x, backend: True)
    monkeypatch.setattr(lif_backends, "usable", lambda *_: True)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """Where the kernels run; new memory is filled with NaN, so that nothing is left unwritten."""
    if request.param == "cuda":
        if lif_gpu.missing() is not None:
            pytest.skip(lif_gpu.missing())
    else:
        request.getfixturevalue("on_host")
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield request.param
    torch.use_deterministic_algorithms(False)


@contextmanager
def launches(monkeypatch):
    """Count the kernels that run, so that no test passes without one."""
    names, run = [], lif_launch._run
    with monkeypatch.context() as patch:
        patch.setattr(lif_launch, "_run", lambda *args: names.append(args[0]) or run(*args))
        yield names
