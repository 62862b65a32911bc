"""What is said of the libraries that read NIR holds: spike by spike, where they are installed.

They are no dependency: this runs in an environment that has snntorch, norse and sinabs too.
"""

import contextlib
import io
import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from sj_ottt import layer
from sj_ottt.neuron import MembraneReadout, OTTTLIFNode
from tests.export.networks import Residual, randomised

nir = pytest.importorskip("nir")

from sj_ottt.export import READERS, to_nir  # noqa: E402
from tests.export.test_nir_graph import ours, read_back  # noqa: E402

NEURONS = {
    "soft": {"tau": 3.0},
    "hard": {"v_reset": 0.0},
    "decay_input": {"decay_input": True, "v_threshold": 0.4},
    "no leak": {"tau": math.inf},
    "no leak, hard": {"tau": math.inf, "v_reset": 0.0},
}


def chain(neuron, head=None):
    torch.manual_seed(0)
    return layer.OTTTSequential(
        layer.WSConv2d(2, 6, 3, padding=1), neuron(), layer.Scale(2.74), layer.AvgPool2d(2),
        layer.Conv2d(6, 8, 3), neuron(), layer.Flatten(), head or layer.Linear(32, 3),
    ).eval()  # fmt: skip


def in_snntorch(graph, x_seq, soft):
    snn = pytest.importorskip("snntorch")
    from snntorch.import_nir import import_from_nir

    ifs = {name.replace(".", "_") for name, n in graph.nodes.items() if isinstance(n, nir.IF)}
    with contextlib.redirect_stdout(io.StringIO()):
        net = import_from_nir(graph)
    cells = {n: m for n, m in net.named_modules() if isinstance(m, snn.Leaky)}
    for name, cell in cells.items():
        if name in ifs:
            cell.beta = torch.ones(())
            cell.init_hidden = True
        cell.reset_mechanism = "subtract" if soft else "zero"
        cell.mem_reset = torch.zeros_like
    return _step_by_step(net, cells, x_seq)


def in_norse(graph, x_seq, soft):
    norse = pytest.importorskip("norse.torch")
    from norse.torch.functional.reset import reset_subtract

    net = norse.from_nir(graph, dt=1.0)
    kinds = ("LIFBoxCell", "IAFCell")
    cells = {n: m for n, m in net.named_modules() if type(m).__name__ in kinds}
    for cell in cells.values():
        if soft:
            cell.p = cell.p._replace(reset_method=reset_subtract)
    return _step_by_step(net, cells, x_seq)


def in_sinabs(graph, x_seq, soft):
    sinabs = pytest.importorskip("sinabs")

    for node in graph.nodes.values():
        if isinstance(node, nir.LIF | nir.LI):
            node.v_leak = np.zeros(1)
            node.tau = torch.as_tensor(node.tau, dtype=torch.float32)
        if isinstance(node, nir.LIF | nir.IF):
            node.v_threshold = torch.as_tensor(node.v_threshold, dtype=torch.float32)
        if isinstance(node, nir.LI):
            node.r = np.ones(1)
    net = sinabs.nir.from_nir(graph, num_timesteps=len(x_seq))
    kinds = (sinabs.layers.LIF, sinabs.layers.IAF)
    cells = {n: m for n, m in net.named_modules() if isinstance(m, kinds) and m.spike_fn}
    for cell in cells.values():
        cell.spike_fn, cell.min_v_mem = sinabs.activation.SingleSpike, None
        if not soft:
            cell.reset_fn = sinabs.activation.MembraneReset()
    found = {}
    for name, cell in cells.items():
        cell.register_forward_hook(lambda _m, _a, out, name=name: found.update({name: out}))
    with torch.no_grad():
        out, _ = net(x_seq)
    return out, found


def _step_by_step(net, cells, x_seq):
    found, outputs, state = {}, [], None

    def note(name):
        return lambda _m, _a, out: found.setdefault(name, []).append(
            out[0] if isinstance(out, tuple) else out
        )

    for name, cell in cells.items():
        cell.register_forward_hook(note(name))
    with torch.no_grad():
        for x in x_seq:
            out, state = net(x, state)
            outputs.append(out)
    return torch.stack(outputs), {name: torch.stack(spikes) for name, spikes in found.items()}


IN = {"snntorch": in_snntorch, "norse": in_norse, "sinabs": in_sinabs}


def compare(model, x_seq, reader, soft):
    """Whether a reader's spikes and outputs are ours, for one recording [T, ...]."""
    expected, expected_spikes = ours(model, x_seq[:, None])
    graph = read_back(to_nir(model, x_seq[:1], reader))
    out, spikes = IN[reader](graph, x_seq, soft)
    assert len(spikes) == len(expected_spikes)
    for name, spike in expected_spikes.items():
        assert 0.01 < spike.mean() < 0.99
        if not torch.equal(spikes[name.replace(".", "_")].reshape(spike.shape).float(), spike):
            return False
    return torch.allclose(out.reshape(expected.shape), expected, rtol=1e-4, atol=1e-5)


@pytest.fixture
def x_seq():
    torch.manual_seed(3)
    return 3 * torch.randn(6, 2, 8, 8)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", NEURONS)
def test_a_reader_computes_the_same_spikes_where_we_say_so(kind, reader, x_seq):
    model = chain(partial(OTTTLIFNode, **NEURONS[kind]))
    soft = NEURONS[kind].get("v_reset") is None
    verdict = to_nir(model, x_seq[:1], reader).readers[reader]
    if verdict.startswith("cannot"):
        assert (reader, kind) == ("norse", "no leak")
        return
    assert verdict.startswith(f"same spikes (measured with version {READERS[reader].version})")
    assert compare(model, x_seq, reader, soft)


@pytest.mark.filterwarnings("ignore")
def test_readers_of_membranes_and_branches(x_seq):
    model = chain(OTTTLIFNode, MembraneReadout(nn.Linear(32, 3)))
    assert to_nir(model, x_seq[:1], "sinabs").readers["sinabs"].startswith("same")
    assert compare(model, x_seq, "sinabs", True)
    residual = randomised(Residual())
    assert to_nir(residual, x_seq[:1]).readers["snntorch"].startswith("same")
    assert compare(residual, 2 * x_seq, "snntorch", True)
