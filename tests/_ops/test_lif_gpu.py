"""How the kernels of neurons get to a GPU: compiled, launched and refused.

Without a GPU, stand-ins for CuPy and for NVIDIA's driver run them on this machine's processor. That
they compile for GPUs is tested on any machine.
"""

import ctypes
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from spikingjelly.activation_based import surrogate

from sj_ottt import InputError
from sj_ottt._ops import cuda_bindings, lif_backends, lif_fused, lif_gpu, lif_launch, trace
from sj_ottt._ops.lif import LIF
from sj_ottt._ops.lif_fused import fused_lif_step
from sj_ottt.neuron import OTTTLIFNode
from tests._ops.conftest import COMPILER, host_library

needs_bindings = pytest.mark.skipif(
    not cuda_bindings.is_installed(), reason="needs cuda-bindings (comes with PyTorch on Linux)"
)
needs_compiler = pytest.mark.skipif(
    COMPILER is None, reason="needs a C++ compiler (Debian: apt install g++)"
)
PACKED = ("SCALAR=float", "TRACE=Packed")


def soft(tau=2.0):
    return LIF(tau, False, 0.8, None, surrogate.Sigmoid())


def forget():
    for cached in (lif_gpu._available, lif_gpu._package, lif_gpu.kernel, cuda_bindings._module):
        cached.cache_clear()


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch):
    """What a test's stand-ins have compiled is no other's."""
    if not torch.cuda.is_available():
        monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    forget()
    yield
    forget()


@needs_compiler
def test_goes_through_cupy(monkeypatch):
    """What CuPy is asked for, with a stand-in for it that runs the kernel on this machine."""
    seen = []

    class RawModule:
        def __init__(self, code, options):
            self.names = dict(o[2:].split("=") for o in options if o.startswith("-D"))
            self.library = host_library(self.names["SCALAR"], self.names["TRACE"])
            assert code == lif_gpu.SOURCE.read_text()

        def get_function(self, name):
            def kernel(grid, block, args, stream):
                (call,) = args
                assert call.size == 1  # which CuPy hands over by value
                seen.append((name, grid, block, stream.ptr, self.names.get("TAU")))
                getattr(self.library, name)(ctypes.c_void_p(call.ctypes.data))

            return kernel

    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(RawModule=RawModule))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(cuda_stream=7))
    monkeypatch.setattr(lif_launch, "_is_host", lambda x: False)
    monkeypatch.setattr(lif_fused, "_needs_one_order", lambda x: False)
    x = torch.ones(1000)
    state = {"v": torch.zeros(1000), "trace": None}
    assert fused_lif_step(x, state, soft()).sum() == 1000
    assert seen == [("lif_forward", (1,), (256,), 7, "2.0")]
    state = {"v": torch.zeros(999), "trace": None}
    fused_lif_step(x[1:], state, soft(tau=3.0))
    # Misaligned: one number per thread; and a division that is no exact product.
    assert seen[1:] == [("lif_forward", (4,), (256,), 7, None)]
    fused_lif_step(x[:0], {"v": torch.zeros(0), "trace": None}, soft())
    assert len(seen) == 2  # nothing to do, no launch


WITHOUT_CUPY = """
import sys, threading
from contextlib import nullcontext
from types import SimpleNamespace

import torch
from spikingjelly.activation_based import surrogate

sys.modules["cupy"] = None
torch.cuda.is_available = lambda: True
torch.cuda.current_device = lambda: 0
torch.cuda.get_device_capability = lambda device: (9, 0)
torch.cuda.current_stream = lambda device: SimpleNamespace(cuda_stream=7)
torch.cuda.device = lambda device: nullcontext()

from sj_ottt._ops import lif_fused, lif_gpu, lif_launch
from sj_ottt._ops.lif import LIF

lif_launch._is_host = lambda x: False
lif_fused._needs_one_order = lambda x: False
assert lif_gpu.missing() is None and lif_gpu.available(0)


def step():
    x = torch.linspace(0.0, 1.6, 1000).requires_grad_()
    lif = LIF(2.0, False, 0.8, None, surrogate.Sigmoid())
    state = {"v": torch.zeros(1000), "trace": None}
    spike = lif_fused.fused_lif_step(x, state, lif)
    grad = torch.rand(1000)
    (ours,) = torch.autograd.grad(spike, x, grad)
    s = torch.sigmoid(4 * (x.detach() - 0.8))
    torch.testing.assert_close(ours, grad * 4 * s * (1 - s))
    assert torch.equal(spike, (x >= 0.8).float()) and spike.sum() == 500


step()
thread = threading.Thread(target=step)  # which has no context of CUDA yet
thread.start()
thread.join()
"""


@needs_bindings
@needs_compiler
def test_goes_through_cudas_own_bindings_where_there_is_no_cupy(tmp_path):
    """NVRTC compiles for a GPU; then a stand-in for the driver runs the kernel on this machine."""
    driver, kernels = tmp_path / "libcuda.so.1", tmp_path / "kernels.so"
    options = ("-std=c++17", "-O2", "-ffp-contract=off", "-shared", "-fPIC", "-w")
    names = [f"-D{name}" for name in PACKED]
    for source, built, flags in (
        (Path(__file__).with_name("driver.cpp"), driver, ["-ldl"]),
        (lif_gpu.SOURCE, kernels, []),
    ):
        command = [COMPILER, *options, *names, "-x", "c++", source, "-o", built, *flags]
        subprocess.run(command, check=True)
    env = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "KERNELS": str(kernels)}
    command = [sys.executable, "-c", WITHOUT_CUPY]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and "Error" not in done.stderr, done.stderr
    # 1,000 numbers, four a thread of 256; forward and backward, in two threads of Python.
    assert done.stdout.splitlines() == ["launch 1 1 1 256 7"] * 4


def test_falls_back_where_the_kernels_do_not_compile(monkeypatch):
    """With one warning, which says why."""

    class RawModule:
        def __init__(self, code, options):
            raise RuntimeError("NVRTC_ERROR_INVALID_OPTION (5)\nmore")

    def kernel(*_):
        raise RuntimeError("CUDA said CUDA_ERROR_NO_BINARY_FOR_GPU (209)")

    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(RawModule=RawModule))
    monkeypatch.setattr(lif_gpu, "missing", lambda *_: None)
    monkeypatch.setattr(cuda_bindings, "kernel", kernel)
    with pytest.warns(
        UserWarning, match=r"compiled here \(CuPy: NVRTC.*\(5\); cuda-bindings: .*\(209\)\), so"
    ) as caught:
        assert not lif_gpu.available(0) and not lif_gpu.available(0)
    assert len(caught) == 1
    with pytest.raises(InputError, match=r'CuPy: NVRTC.* say backend="torch"'):
        lif_gpu.kernel("lif_forward", PACKED, (), 0)


def test_a_cupy_for_another_cuda_is_no_reason_to_go_without(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace())  # which has no RawModule
    monkeypatch.setattr(lif_gpu, "missing", lambda *_: None)
    monkeypatch.setattr(cuda_bindings, "kernel", lambda *_: "compiled")
    assert lif_gpu.available(0)
    assert lif_gpu.kernel("lif_forward", PACKED, (), 0) == "compiled"


def test_who_names_cupy_gets_no_other_package(monkeypatch):
    """One that is installed and cannot compile is told, in the first step."""

    def fails(*_):
        raise RuntimeError("libnvrtc.so.12: cannot open shared object file")

    monkeypatch.setattr(lif_gpu, "missing", lambda *_: None)
    monkeypatch.setattr(lif_gpu, "COMPILERS", {"CuPy": fails, "cuda-bindings": lambda *_: 1})
    device = SimpleNamespace(index=0)
    x = SimpleNamespace(dtype=torch.float32, is_cuda=True, is_cpu=False, device=device)
    with pytest.raises(InputError, match=r"CuPy: libnvrtc.*: mend CuPy, or say backend=\"cuda\""):
        lif_backends.check_usable(x, surrogate.Sigmoid(), "cupy")
    lif_backends.check_usable(x, surrogate.Sigmoid(), "cuda")
    forget()
    monkeypatch.setitem(lif_gpu.COMPILERS, "CuPy", lambda *_: 1)
    lif_backends.check_usable(x, surrogate.Sigmoid(), "cupy")


def test_it_is_tried_on_the_device_of_the_input(monkeypatch):
    """Another GPU may be full, or of another kind; and each process has its own."""
    entered, tried = [], []

    class Device(nullcontext):
        def __enter__(self):
            entered.append(self.enter_result)

    def compiled(*_):
        tried.append(entered[-1])
        if tried[-1] == 0:
            raise RuntimeError("CUDA said CUDA_ERROR_OUT_OF_MEMORY (2)")

    monkeypatch.setattr(torch.cuda, "device", Device)
    monkeypatch.setattr(lif_gpu, "missing", lambda *_: None)
    monkeypatch.setattr(lif_gpu, "COMPILERS", {"CuPy": compiled})
    assert lif_gpu.available(1) and tried == [1]
    with pytest.warns(UserWarning, match="OUT_OF_MEMORY"):
        assert not lif_gpu.available(0) and tried == [1, 0]
    assert lif_gpu.available(1) and tried == [1, 0]


def test_a_compiled_network_takes_it_as_it_is(monkeypatch):
    """What is tried imports packages and reads files, which PyTorch's compiler cannot follow."""

    def compiled(name, options):
        import cupy

        return cupy, lif_gpu.SOURCE.read_bytes()

    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace())
    monkeypatch.setattr(lif_gpu, "missing", lambda *_: None)
    monkeypatch.setattr(lif_gpu, "COMPILERS", {"CuPy": compiled})

    @torch.compile(fullgraph=True, backend="eager")
    def program(x):
        return x + 1 if lif_gpu.available(0) else x

    assert program(torch.zeros(2)).tolist() == [1, 1]


@pytest.mark.gpu
@pytest.mark.parametrize("package", list(lif_gpu.COMPILERS))
def test_runs_in_the_stream_of_pytorch(package, monkeypatch):
    """A kernel in another stream would read x before it is there."""
    pytest.importorskip({"CuPy": "cupy"}.get(package, "cuda.bindings"))
    monkeypatch.setattr(lif_gpu, "COMPILERS", {package: lif_gpu.COMPILERS[package]})
    x = torch.zeros(1 << 22, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        x.fill_(2.0)
        spike = fused_lif_step(x, {"v": torch.zeros_like(x), "trace": None}, soft())
    stream.synchronize()
    assert spike.min() == 1.0


@needs_bindings
@pytest.mark.slow
@pytest.mark.parametrize(("turn", "capability"), [(0, (7, 5)), (1, (8, 0)), (2, (9, 0))])
def test_compiles_for_gpus(turn, capability):
    """Every pair of dtypes, and for older architectures those with conversions of their own.

    Each architecture has them with other constants.
    """
    neuron = lif_launch.Neuron(2.0, 0.5, 1.0, None, 4.0, False, 0, 0)
    other = lif_launch.Neuron(3.0, 0.5, 1.0, 0.0, 4.0, True, 1, 2)
    constants = ((), lif_launch._flags(neuron), lif_launch._flags(other))
    membranes = [torch.empty(0, dtype=scalar) for scalar in lif_launch.SCALARS]
    traces = [(v, trace.zeros(v, name)) for v in membranes for name in trace.TRACE_DTYPES]
    pairs = [(v.dtype, a.dtype) for v, a in traces]
    if capability < (9, 0):
        pairs = [pair for pair in pairs if {torch.float16, torch.bfloat16} & {*pair}]
    assert len(pairs) >= 8
    for i, (scalar, form) in enumerate(pairs):
        flags = constants[(i + turn) % len(constants)]
        options = lif_gpu._options(lif_launch.types(scalar, form), flags)
        image = cuda_bindings.program(lif_gpu.SOURCE, options, capability)
        assert image.startswith(b"\x7fELF") and b"lif_backward" in image


@needs_bindings
def test_a_gpu_newer_than_the_compiler_gets_ptx():
    """Which its driver translates."""
    text = cuda_bindings.program(lif_gpu.SOURCE, lif_gpu._options(PACKED, ()), (99, 0))
    assert b".visible .entry lif_forward" in text and text.endswith(b"\0")


@needs_bindings
def test_says_what_the_compiler_says(tmp_path):
    source = tmp_path / "wrong.cu"
    source.write_text('extern "C" __global__ void kernel(int x) { y = x; }')
    with pytest.raises(RuntimeError, match=r'wrong.cu.*error: identifier "y" is undefined'):
        cuda_bindings.program(source, (), (9, 0))


@needs_bindings
def test_what_cuda_says_is_no_input_error():
    """A launch fails by a bug, here or before it; who calls keeps the traceback."""
    driver = pytest.importorskip("cuda.bindings.driver")
    assert cuda_bindings._checked((driver.CUresult.CUDA_SUCCESS, 7)) == 7
    with pytest.raises(RuntimeError, match=r"CUDA_ERROR_ILLEGAL_ADDRESS \(700\)") as caught:
        cuda_bindings._checked((driver.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS, None))
    assert not isinstance(caught.value, InputError)


def test_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("cuda", "cupy"):
        with pytest.raises(InputError, match=rf'"{name}" cannot run here, because PyTorch sees'):
            OTTTLIFNode(backend=name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda_bindings, "is_installed", lambda: True)
    monkeypatch.setitem(sys.modules, "cupy", None)
    OTTTLIFNode(backend="cuda")
    with pytest.raises(InputError, match=r"CuPy is not installed: pip install cupy-cuda13x"):
        OTTTLIFNode(backend="cupy")
    monkeypatch.setattr(cuda_bindings, "is_installed", lambda: False)
    with pytest.raises(InputError, match=r"neither CuPy nor .* pip install cupy-cuda13x"):
        OTTTLIFNode(backend="cuda")
    assert OTTTLIFNode(backend="auto")(torch.ones(2, 3))[0].sum() == 6


def test_refuses_what_the_kernels_do_not_know(monkeypatch):
    monkeypatch.setattr(lif_gpu, "missing", lambda *_: None)
    x = torch.ones(2)
    with pytest.raises(InputError, match='is on "cpu"'):
        OTTTLIFNode(backend="cuda")(x)
    with pytest.raises(InputError, match="does not know the surrogate Erf"):
        OTTTLIFNode(backend="cuda", surrogate_function=surrogate.Erf())(x)
    with pytest.raises(InputError, match=r"cannot compute in torch\.int64"):
        OTTTLIFNode(backend="cupy")(x.long())
