"""A neuron's backward pass writes into the gradient that it was given, if nobody else holds it."""

from functools import partial

import pytest
import torch
from spikingjelly.activation_based import surrogate
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.measure import peak_bytes
from sj_ottt._ops import blocks, held, lif, scan
from sj_ottt._ops.lif import LIF, LIFState, lif_step
from sj_ottt._ops.scan import lif_scan
from sj_ottt.functional import avg_pool2d

SHAPE = (3, 4, 6, 6)
pool = partial(avg_pool2d, kernel_size=2)


def _neuron(steps, v_reset=None):
    """Currents, and the spikes of a neuron in a step, or in steps that are one batch."""
    torch.manual_seed(0)
    x = torch.randn(max(1, steps) * SHAPE[0], *SHAPE[1:], dtype=torch.double, requires_grad=True)
    state = LIFState(v=torch.zeros(SHAPE).double(), trace=torch.zeros(SHAPE, dtype=torch.uint8))
    constants = LIF(2.0, False, 0.5, v_reset, surrogate.Sigmoid())
    if not steps:
        return x, lif_step(x, state, constants, 0.5)
    spikes = lif_scan(x.unflatten(0, (steps, -1)), state, constants, 0.5)[0]
    return x, spikes.flatten(0, 1)


def _plain(x, spike, kept):
    pool(spike).square().sum().backward()
    return x.grad


def _a_hook_keeps(keep):
    def use(x, spike, kept):
        spike.register_hook(lambda g: kept.append(keep(g)))
        return _plain(x, spike, kept)

    return use


def _a_hook_changes(x, spike, kept):
    spike.register_hook(lambda g: g.mul_(0.5))
    return _plain(x, spike, kept)


def _a_hook_gives_what_it_keeps(x, spike, kept):
    spike.register_hook(lambda g: kept.append(2 * g) or kept[-1])
    return _plain(x, spike, kept)


def _it_is_retained(x, spike, kept):
    spike.retain_grad()
    _plain(x, spike, kept)
    kept.append(spike.grad)
    return x.grad


def _it_is_asked_for(x, spike, kept):
    between, found = torch.autograd.grad(pool(spike).square().sum(), [spike, x])
    kept.append(between)
    return found


def _it_is_given(x, spike, kept):
    kept.append(torch.ones_like(spike))
    return torch.autograd.grad(spike, x, kept[-1])[0]


def _a_sum_sends_it_two_ways(x, spike, kept):
    other, other_spike = _neuron(0)
    (pool(spike[:3] + other_spike).square().sum() + 0 * spike.sum()).backward()
    kept.append(other.grad)
    return x.grad


def _two_take_the_spikes(x, spike, kept):
    (pool(spike).square().sum() + spike.sin().sum()).backward()
    return x.grad


def _a_node_keeps_it(x, spike, kept):
    spike.grad_fn.register_prehook(lambda grads: kept.extend(g for g in grads if g is not None))
    return _plain(x, spike, kept)


def _a_node_sees_it_afterwards(x, spike, kept):
    spike.grad_fn.register_hook(lambda inputs, grads: kept.extend(g.clone() for g in grads[:1]))
    return _plain(x, spike, kept)


USES = {
    "nobody": _plain,
    "a hook keeps it": _a_hook_keeps(lambda g: g),
    "a hook keeps its numbers": _a_hook_keeps(lambda g: torch.from_numpy(g.numpy())),
    "a hook keeps it detached": _a_hook_keeps(torch.Tensor.detach),
    "a hook keeps a part": _a_hook_keeps(lambda g: g[0]),
    "a hook changes it": _a_hook_changes,
    "a hook gives what it keeps": _a_hook_gives_what_it_keeps,
    "it is retained": _it_is_retained,
    "it is asked for": _it_is_asked_for,
    "it is given": _it_is_given,
    "a sum sends it two ways": _a_sum_sends_it_two_ways,
    "two take the spikes": _two_take_the_spikes,
    "a node keeps it": _a_node_keeps_it,
    "a node sees it afterwards": _a_node_sees_it_afterwards,
}


@pytest.mark.parametrize("v_reset", [None, 0.0])
@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("use", USES)
def test_who_holds_a_gradient_keeps_it(use, steps, v_reset, monkeypatch):
    kept, untouched = [], []
    found = USES[use](*_neuron(steps, v_reset), kept)
    for module in (lif, scan):
        monkeypatch.setattr(module, "of_one", tuple)  # nothing is ever free
    expected = USES[use](*_neuron(steps, v_reset), untouched)
    assert expected.abs().max() > 0
    assert torch.equal(found, expected)
    assert len(kept) == len(untouched)
    assert all(map(torch.equal, kept, untouched))


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_nothing_new_of_its_size_is_made_where_nobody_holds_it(steps, monkeypatch):
    monkeypatch.setattr(blocks, "_BLOCK", 32)
    peaks = []
    for known in (held.of_one, tuple):
        for module in (lif, scan):
            monkeypatch.setattr(module, "of_one", known)
        x, spike = _neuron(steps)
        loss = pool(spike).square().sum()
        peaks.append(peak_bytes(lambda x=x, loss=loss: torch.autograd.grad(loss, x)) / x.nbytes)
    assert peaks[1] - peaks[0] > 0.4


class _Keeps(TorchDispatchMode):
    """Holds every tensor that is made."""

    def __init__(self):
        super().__init__()
        self.tensors = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.tensors.append(func(*args, **(kwargs or {})))
        return self.tensors[-1]


def test_what_others_hold_is_not_counted_as_held_by_none():
    known = held.of_one()
    assert len(known) == 2 and all(known)
    held.of_one.cache_clear()
    with torch.inference_mode(), _Keeps():
        assert held.of_one() == known
