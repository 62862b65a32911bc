"""The LIF neuron that carries a trace: its equations, its state, and SpikingJelly's signature."""

import copy
import inspect
import pickle

import pytest
import torch
from spikingjelly.activation_based import functional as sj_functional
from spikingjelly.activation_based import layer as sj_layer
from spikingjelly.activation_based import neuron as sj_neuron
from spikingjelly.activation_based import surrogate

from sj_ottt import InputError
from sj_ottt._ops.trace import Trace
from sj_ottt.functional import ottt_lif_step
from sj_ottt.layer import Pair
from sj_ottt.neuron import OTTTLIFNode


def test_signature_is_spikingjellys_plus_ours():
    ours = inspect.signature(OTTTLIFNode).parameters
    theirs = inspect.signature(sj_neuron.OTTTLIFNode).parameters
    assert list(ours) == [*theirs, "backend", "trace_dtype"]
    for name in set(theirs) - {"surrogate_function"}:
        assert ours[name].default == theirs[name].default
    assert isinstance(OTTTLIFNode(), sj_neuron.LIFNode)
    node = OTTTLIFNode()
    assert isinstance(node.surrogate_function, surrogate.Sigmoid)
    assert node.surrogate_function.alpha == 4.0
    assert node.surrogate_function is not OTTTLIFNode().surrogate_function


@pytest.mark.parametrize("v_reset", [None, 0.0, -0.5])
@pytest.mark.parametrize("decay_input", [False, True])
def test_spikes_membrane_and_trace_follow_the_equations(v_reset, decay_input):
    torch.manual_seed(0)
    tau, threshold = 3.0, 0.7
    node = OTTTLIFNode(tau, decay_input, threshold, v_reset).double()
    x_seq = 2 * torch.rand(9, 4, 5, dtype=torch.double)
    rest = 0.0 if v_reset is None else v_reset
    v, trace = torch.full((4, 5), rest).double(), torch.zeros(4, 5).double()
    for x in x_seq:
        spike, a = node(x)
        u = v + ((x - (v - rest)) / tau if decay_input else x - (v - rest) / tau)
        s = (u >= threshold).double()
        v = u - threshold * s if v_reset is None else torch.where(s > 0, v_reset, u)
        trace = (1 - 1 / tau) * trace + s
        for ours, expected in ((spike, s), (a, trace), (node.v, v), (node.trace, trace)):
            torch.testing.assert_close(ours, expected)
    assert 0.1 < trace.mean() < 0.97 * trace.max()


def test_training_gives_a_pair_and_evaluation_a_tensor_without_trace():
    node = OTTTLIFNode()
    out = node(torch.rand(2, 3))
    assert isinstance(out, list) and len(out) == 2
    node.eval()
    assert isinstance(node(torch.rand(2, 3)), torch.Tensor)
    assert node.trace is None


def test_multi_step_evaluates():
    torch.manual_seed(0)
    x_seq = 2 * torch.rand(6, 2, 3)
    node = OTTTLIFNode().eval()
    expected = torch.stack([node(x) for x in x_seq])
    many = OTTTLIFNode(step_mode="m").eval()
    torch.testing.assert_close(many(x_seq), expected)
    torch.testing.assert_close(many.v, node.v)
    assert 0 < expected.mean() < 1
    with pytest.raises(ValueError):
        node.step_mode = "x"


def test_state_follows_batch_size_dtype_and_mode():
    node = OTTTLIFNode()
    node(torch.rand(4, 3))
    spike, trace = node(torch.rand(2, 3))
    assert spike.shape == trace.shape == node.v.shape == (2, 3)
    spike, trace = node(torch.rand(2, 3, dtype=torch.double))
    assert spike.dtype == trace.dtype == node.v.dtype == torch.double
    node.eval()(torch.rand(5, 3))
    assert node.train()(torch.rand(5, 3))[1].shape == (5, 3)


def test_reset_detach_deepcopy_pickle_and_to():
    torch.manual_seed(0)
    x = torch.rand(3, 4, requires_grad=True)
    node = OTTTLIFNode()
    node(x)
    assert node.v.requires_grad and not node.trace.requires_grad
    assert not node._memories["v"].requires_grad and not copy.deepcopy(node).v.requires_grad
    sj_functional.detach_net(node)
    assert not node.v.requires_grad
    for twin in (copy.deepcopy(node), pickle.loads(pickle.dumps(node))):
        torch.testing.assert_close(twin(x)[1], copy.deepcopy(node)(x)[1])
    assert node.to(torch.double).v.dtype == torch.double
    assert not node.state_dict()
    sj_functional.reset_net(node)
    assert node.v == 0.0 and node.trace is None


def test_no_step_keeps_the_graph_of_another():
    """Backward works at every step, and the input of step 1 gets nothing from step 2."""
    node = OTTTLIFNode()
    first = torch.rand(2, 3, requires_grad=True)
    node(first)[0].sum().backward()
    seen = first.grad.clone()
    node(torch.rand(2, 3, requires_grad=True))[0].sum().backward()
    torch.testing.assert_close(first.grad, seen)


def test_the_pure_step_sends_no_gradient_into_the_past():
    """Not through the membrane, the reset or the trace, even where they are given with a graph."""
    x, v, trace = (torch.rand(2, 3, requires_grad=True) for _ in range(3))
    spike, v_next, trace_next = ottt_lif_step(
        x,
        v,
        trace,
        tau=2.0,
        decay_input=False,
        v_threshold=1.0,
        v_reset=None,
        surrogate_function=surrogate.Sigmoid(),
    )
    assert not trace_next.requires_grad
    total = spike.sum() + v_next.sum()
    assert torch.autograd.grad(total, (x, v, trace), allow_unused=True)[1:] == (None, None)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [({"tau": 1.0}, "tau=1.0"), ({"tau": float("nan")}, "tau=nan"), ({"backend": "x"}, "backend")],
)
def test_bad_arguments(kwargs, words):
    with pytest.raises(InputError, match=words):
        OTTTLIFNode(**kwargs)


def test_store_v_seq():
    node = OTTTLIFNode(store_v_seq=True)
    for _ in range(3):
        node(torch.rand(2, 3))
    assert node.v_seq.shape == (3, 2, 3)


@pytest.mark.parametrize("trace_dtype", ["float32", "packed"])
def test_what_a_neuron_hands_on_is_a_list_of_two_tensors(trace_dtype):
    """SpikingJelly's containers ask for a list, take its first item, and unpack it."""
    torch.manual_seed(0)
    node = OTTTLIFNode(trace_dtype=trace_dtype)
    node(2 * torch.rand(3, 5))
    pair = node(2 * torch.rand(3, 5))
    assert isinstance(pair, list) and len(pair) == 2
    spike, trace = pair
    assert type(spike) is type(trace) is torch.Tensor and 0 < spike.mean() < 1
    assert torch.equal(pair[0], spike) and torch.equal(pair[1], trace)
    assert not torch.equal(trace, spike) and isinstance(pair.trace, Trace)
    for again in (copy.deepcopy(Pair(spike, pair.trace)), pickle.loads(pickle.dumps(pair))):
        assert all(torch.equal(a, b) for a, b in zip(again, pair, strict=True))
    theirs = sj_layer.OTTTSequential(node, torch.nn.Linear(5, 2))
    assert theirs(torch.rand(3, 5)).shape == (3, 2)
