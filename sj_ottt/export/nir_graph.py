"""A network as a graph of the Neuromorphic Intermediate Representation (NIR).

NIR's neuron is continuous, τ dv/dt = (v_leak − v) + r I, and each reader steps it in its own way.
One step of ours is u[t] = λ v[t−1] + k I[t] with λ = 1 − 1/tau. It is

    Euler's step of dt:     v + (dt/τ) (v_leak − v + r I)         with τ = tau dt,     r = k tau
    the exact step of dt:   α v + (1 − α) r I,  α = exp(−dt/τ)    with τ = −dt / ln λ, r = k tau
"""

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sj_ottt.errors import InputError, suggest
from sj_ottt.export.folding import fold
from sj_ottt.export.tracing import Op, trace_operations

__all__ = ["READERS", "NIRExport", "Reader", "to_nir"]


@dataclass(frozen=True)
class Reader:
    """How a library reads NIR, as measured.

    Attributes:
        version: The one that was measured.
        dt: Its time step, in the unit of τ.
        exact: Whether its step is the exact one; else it is Euler's.
        gain: What it takes for r / tau: "r", as it stands; "1", whatever r says; "1/tau".
        branches: Whether it runs parallel branches in their order.
        membranes: Whether it has the node of a membrane without spikes (LI).
        to_read: What has to be done before and while it reads.
        soft: What has to be done to the loaded network for soft resets; None where nothing helps.
        hard: The same for resets to zero.
        soft_if: As `soft`, for neurons without a leak.
        hard_if: As `hard`, for them.
    """

    version: str
    dt: float
    exact: bool
    gain: str
    branches: bool
    membranes: bool
    to_read: str
    soft: str
    hard: str
    soft_if: str | None
    hard_if: str


READERS = {
    "snntorch": Reader(
        version="1.0.0",
        dt=1e-4,
        exact=False,
        gain="r",
        branches=True,
        membranes=False,
        to_read="",
        soft="set reset_mechanism='subtract' and mem_reset=torch.zeros_like of each Leaky",
        hard="",
        soft_if="set init_hidden=True, beta=torch.ones(()) and mem_reset=torch.zeros_like of each "
        "Leaky that was an IF",
        hard_if="set init_hidden=True, beta=torch.ones(()) and reset_mechanism='zero' of each "
        "Leaky that was an IF",
    ),
    "norse": Reader(
        version="1.1.0",
        dt=1.0,
        exact=False,
        gain="1/tau",
        branches=False,
        membranes=False,
        to_read="read with from_nir(graph, dt=1.0)",
        soft="set p=p._replace(reset_method=reset_subtract) of each LIFBoxCell",
        hard="",
        soft_if=None,
        hard_if="",
    ),
    "sinabs": Reader(
        version="2.0.3",
        dt=1.0,
        exact=True,
        gain="1",
        branches=False,
        membranes=True,
        to_read="before reading, set v_leak=np.zeros(1) of each LIF and LI node (and r=np.ones(1) "
        "of LI), and make tau and v_threshold float32 tensors",
        soft="set spike_fn=SingleSpike of each layer of neurons",
        hard="set spike_fn=SingleSpike and reset_fn=MembraneReset() of each layer of neurons",
        soft_if="set spike_fn=SingleSpike and min_v_mem=None of each layer of neurons",
        hard_if="set spike_fn=SingleSpike, min_v_mem=None and reset_fn=MembraneReset() of each "
        "layer of neurons",
    ),
}
"""Libraries that read NIR, by name."""


@dataclass(frozen=True)
class NIRExport:
    """A network as a graph.

    Attributes:
        graph: A `nir.NIRGraph`.
        readers: Name of each library → whether it computes the same network, and what has to be
            done for it.
    """

    graph: Any
    readers: dict[str, str]

    def to_bytes(self) -> bytes:
        """Return the contents of the file that `nir.read` reads."""
        buffer = io.BytesIO()
        _nir().write(buffer, self.graph)
        return buffer.getvalue()


def to_nir(
    model: nn.Module,
    example: Tensor,
    reader: str = "snntorch",
    metadata: Mapping[str, str] | None = None,
) -> NIRExport:
    """Write a network as a NIR graph, which takes and gives one time step at a time.

    Standardized weights stand in it as they are multiplied with, and constant factors (γ, the α and
    β of an NF-ResNet) are folded into weights and thresholds. The nodes are Conv2d, Affine, Linear,
    SumPool2d (an average pool's divisor is folded too), Flatten, LIF, IF and, for a membrane
    readout, LI. Where several results are added up, a node has several edges. A learnt time
    constant is written as it is now.

    NIR has no word for a soft reset, and its neuron fires above the threshold, ours at it too: each
    neuron's metadata says its reset (``reset``: "subtract" or "value") and when it fires
    (``fires``).

    Args:
        model: Neurons of `sj_ottt.neuron`, synapses, average pools, flattening, dropout, batch norm
            in evaluation; sums and constant factors in between. `sj_ottt.convert` makes it of
            SpikingJelly's networks. Its state is reset.
        example: Input of one time step, [N, ...].
        reader: One of `READERS`, for whose time step and reading of r the constants are chosen.
        metadata: More to say in the graph's metadata.

    Returns:
        The graph, and which readers compute the same network.

    Raises:
        InputError: If something in the network has no node in NIR, it is named; if the reader is
            unknown; or if `nir` is not installed.
    """
    if reader not in READERS:
        raise InputError(
            f'reader="{reader}" is unknown: use one of {", ".join(READERS)}'
            f"{suggest(reader, READERS)}"
        )
    nir = _nir()
    ops = fold(*trace_operations(model, example))
    chosen = READERS[reader]
    nodes: dict[str, Any] = {}
    edges: list[tuple[str, str]] = []
    for op in ops:
        nodes[op.name] = _node(nir, op, chosen)
        edges += [(source.name, op.name) for source in op.inputs]
    said = {
        "made_by": "sj_ottt",
        "reader": reader,
        "dt": repr(chosen.dt),
        "step": "exact" if chosen.exact else "euler",
        **(metadata or {}),
    }
    graph = nir.NIRGraph(nodes, edges, said, type_check=False)
    graph.infer_types()
    return NIRExport(graph, {name: _verdict(ops, name, reader) for name in READERS})


def _nir() -> Any:
    """Import the package that writes NIR.

    Raises:
        InputError: It is not installed.
    """
    try:
        import nir
    except ImportError as error:
        raise InputError(
            'NIR needs the package nir: install it with pip install "sj-ottt[export]"'
        ) from error
    return nir


def _node(nir: Any, op: Op, reader: Reader) -> Any:
    """Return the node of an operation."""
    shape = np.array(op.shape)
    if op.kind == "input":
        return nir.Input({"input": shape})
    if op.kind == "output":
        return nir.Output({"output": shape})
    if op.kind == "linear":
        weight = _array(op.weight)
        return nir.Linear(weight) if op.bias is None else nir.Affine(weight, _array(op.bias))
    (source, *_) = op.inputs
    if op.kind == "conv":
        return _convolution(nir, op.weight, op.bias, source, op.options)
    if op.kind == "pool":
        return _pool(nir, source, op.options)
    if op.kind == "flatten":
        return nir.Flatten({"input": np.array(source.shape)}, start_dim=0, end_dim=-1)
    if op.kind == "li":
        return _integrator(nir, op, reader)
    return _neuron(nir, op, reader)


def _array(tensor: Tensor) -> np.ndarray:
    array: np.ndarray = tensor.detach().float().cpu().contiguous().numpy()
    return array


def _convolution(
    nir: Any, weight: Tensor, bias: Tensor | None, source: Op, options: Mapping[str, Any]
) -> Any:
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    names = ("stride", "padding", "dilation")
    return nir.Conv2d(
        input_shape=source.shape[1:],
        weight=_array(weight),
        bias=_array(bias),
        groups=1,
        **{name: options[name] for name in names},
    )


def _pool(nir: Any, source: Op, options: Mapping[str, Any]) -> Any:
    """Return sums over windows; as a convolution where they are padded, which readers' are not."""
    kernel = options["kernel_size"]
    if any(options["padding"]):
        weight = torch.eye(source.shape[0])[:, :, None, None].expand(-1, -1, *kernel)
        return _convolution(nir, weight, None, source, {**options, "dilation": (1, 1)})
    return nir.SumPool2d(**{name: np.array(value) for name, value in options.items()})


def _neuron(nir: Any, op: Op, reader: Reader) -> Any:
    """Return a LIF node; an IF node for a neuron without a leak."""
    neuron = op.module
    (factor,) = set(op.inputs.values())
    k = factor / neuron.tau if neuron.decay_input else factor
    lam = 1.0 - 1.0 / neuron.tau
    soft = neuron.v_reset is None
    rest = 0.0 if soft else neuron.v_reset
    metadata = {"reset": "subtract" if soft else "value", "fires": "v >= v_threshold"}

    def node(make: Any, scale: float, **values: float) -> Any:
        # Where a reader ignores r, the membrane is counted in another unit.
        values |= {"v_threshold": scale * neuron.v_threshold, "v_reset": scale * rest}
        arrays = {name: np.full(op.shape, value) for name, value in values.items()}
        return make(**arrays, metadata=metadata)

    if math.isinf(neuron.tau):
        return node(nir.IF, 1 / k, r=1.0)
    scale = {"r": 1.0, "1": 1 / k, "1/tau": 1 / (k * neuron.tau)}[reader.gain]
    tau = -reader.dt / math.log(lam) if reader.exact else neuron.tau * reader.dt
    return node(nir.LIF, scale, tau=tau, r=scale * k * neuron.tau, v_leak=scale * rest)


def _integrator(nir: Any, op: Op, reader: Reader) -> Any:
    """Return a LI node; an I node for a readout that sums up all steps."""
    (factor,) = set(op.inputs.values())
    tau = op.module.tau
    if math.isinf(tau):
        return nir.I(r=np.full(op.shape, factor))
    time = -reader.dt / math.log(1.0 - 1.0 / tau) if reader.exact else tau * reader.dt
    # The output stays in its unit: a reader that takes 1 for r / tau finds a factor of one there.
    values = {"tau": time, "r": 1.0 if reader.gain == "1" else tau * factor, "v_leak": 0.0}
    return nir.LI(**{name: np.full(op.shape, value) for name, value in values.items()})


def _verdict(ops: list[Op], reader: str, written_for: str) -> str:
    """Return whether a reader computes the same network, and what has to be done for it."""
    how = READERS[reader]
    neurons = [op.module for op in ops if op.kind == "lif"]
    if any(op.kind == "li" for op in ops) and not how.membranes:
        return "cannot: it has no membrane without spikes (LI)"
    if any(len(op.inputs) > 1 for op in ops) and not how.branches:
        return "cannot: it runs parallel branches in a wrong order, without a word"
    if any(neuron.v_reset for neuron in neurons):
        return "cannot: it resets to 0 only"
    to_do = {how.to_read: None}
    for neuron in neurons:
        soft, leaks = neuron.v_reset is None, math.isfinite(neuron.tau)
        advice = (
            (how.soft if leaks else how.soft_if) if soft else (how.hard if leaks else how.hard_if)
        )
        if advice is None:
            return "cannot: its neurons without a leak do not subtract the threshold"
        to_do[advice] = None
    if reader != written_for:
        return f'another time step: write the graph with reader="{reader}"'
    advice = "; ".join(step for step in to_do if step)
    return f"same spikes (measured with version {how.version}); {advice or 'nothing to be done'}"
