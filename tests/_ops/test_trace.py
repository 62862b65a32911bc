"""The forms of a trace: their errors, and the gradients that they give."""

import pytest
import torch

from benchmarks.measure import peak_bytes
from sj_ottt import InputError
from sj_ottt._ops import trace as traces
from sj_ottt._ops.pair import Pair
from sj_ottt._ops.trace import Trace, View
from sj_ottt.layer import AdaptiveAvgPool2d, AvgPool2d
from sj_ottt.neuron import OTTTLIFNode
from tests.every_layer import network, train
from tests.networks import largest_error


def spikes_and_traces(trace_dtype: str, steps: int, tau: float = 2.0):
    torch.manual_seed(0)
    node, exact = OTTTLIFNode(tau, trace_dtype=trace_dtype).double(), torch.zeros(500).double()
    for _ in range(steps):
        pair = node(2 * torch.rand(500).double())
        spike, stored = pair.spike, pair.trace
        exact = exact * (1 - 1 / tau) + spike
        yield (stored.decode(torch.double) - exact).abs().max().item()


def test_packed_trace_is_exact_for_eight_steps_and_bounded_beyond():
    errors = list(spikes_and_traces("packed", 40))
    assert max(errors[:8]) == 0
    assert 0 < max(errors[8:]) < 2**-7


@pytest.mark.parametrize("tau", [1.5, 2.0, 5.0])
@pytest.mark.parametrize(("trace_dtype", "bits"), [("float16", 11), ("bfloat16", 8)])
def test_half_precision_traces_keep_their_bound(trace_dtype, bits, tau):
    errors = list(spikes_and_traces(trace_dtype, 40, tau))
    lam = 1 - 1 / tau
    assert max(errors) <= 2**-bits / (1 - lam) ** 2
    assert max(errors) > 0 or tau == 2.0


@pytest.mark.parametrize("update", ["accumulate", "online"])
def test_gradients_with_a_packed_trace_are_exact(update):
    expected, packed = (
        train(network(trace_dtype, dropout=0.2), steps=8, update=update)
        for trace_dtype in ("float32", "packed")
    )
    assert largest_error(packed, expected) < 1e-12


def test_gradients_with_a_packed_trace_beyond_eight_steps_are_close_and_not_equal():
    error = largest_error(train(network("packed"), steps=20), train(network(), steps=20))
    assert 1e-9 < error < 2**-7


@pytest.mark.parametrize(("trace_dtype", "bound"), [("float16", 2**-9), ("bfloat16", 2**-6)])
def test_gradients_with_a_half_precision_trace(trace_dtype, bound):
    assert largest_error(train(network(trace_dtype)), train(network())) < bound


def test_packed_trace_takes_a_quarter_of_the_room():
    node = OTTTLIFNode(trace_dtype="packed")
    pair = node(torch.rand(3, 5))
    spike, packed = pair.spike, pair.trace
    assert packed.stored.nbytes == 15 and spike.nbytes == 60
    assert packed.decode(torch.float32).shape == spike.shape


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"trace_dtype": "packed", "tau": 3.0}, "needs tau=2"),
        ({"trace_dtype": "paked"}, "did you mean packed"),
    ],
)
def test_bad_trace_dtype(kwargs, words):
    with pytest.raises(InputError, match=words):
        OTTTLIFNode(**kwargs)


def test_a_pooled_trace_is_decoded_some_samples_after_another(monkeypatch):
    monkeypatch.setattr(traces, "_PART", 2 * 3 * 8 * 8)
    packed = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    with_steps = packed.unflatten(0, (1, 5))
    pools = (AvgPool2d(2), AdaptiveAvgPool2d(2))
    stored = Pair(torch.zeros_like(with_steps, dtype=torch.float), Trace(with_steps, factor=2.0))
    stored = stored.through(View(torch.Tensor.squeeze))
    for pool in pools:
        stored = pool(stored)
    expected = pools[1](pools[0](packed / 64))
    found, parts = [], []
    monkeypatch.setattr(traces, "_joined", lambda values: parts.append(values) or torch.cat(values))
    peak = peak_bytes(lambda: found.append(stored.trace.decode(torch.float)))
    torch.testing.assert_close(found[0], expected, rtol=1e-6, atol=0)
    assert [len(part) for part in parts[0]] == [2, 2, 1]
    assert peak < 4 * packed.numel()  # what all of it would take in float32
