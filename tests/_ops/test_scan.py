"""A chunk of steps against the same steps one by one."""

import pytest
import torch
from spikingjelly.activation_based import surrogate

from sj_ottt._ops import blocks, scan, trace
from sj_ottt._ops.lif import LIF, LIFState, lif_step
from sj_ottt._ops.ndot import NDOTState, ndot_step

SHAPES = {"rows": (3, 5), "images": (2, 3, 4, 5)}


def _laid_out(x: torch.Tensor, layout: str) -> torch.Tensor:
    if layout == "channels last":
        return x.flatten(0, 1).contiguous(memory_format=torch.channels_last).view(x.shape)
    if layout == "time last":
        return x.movedim(0, -1).contiguous().movedim(-1, 0)
    return x


def _start(like, form, ndot):
    if ndot:
        return NDOTState(torch.zeros_like(like), torch.zeros_like(like))
    return None if form is None else trace.zeros(like, form)


def _chunk(x_seq, lif, form, decay, ndot):
    v = torch.full_like(x_seq[0], 0.3).detach()
    state = LIFState(v=v, trace=_start(v, form, ndot))
    spike, stored = scan.lif_scan(x_seq, state, lif, decay, ndot)
    return spike, stored, state


def _steps(x_seq, lif, form, decay, ndot):
    v = torch.full_like(x_seq[0], 0.3).detach()
    state = LIFState(v=v, trace=_start(v, form, ndot))
    spikes, stored = [], []
    for x in x_seq:
        state["v"] = state["v"].detach()
        if ndot:
            spikes.append(ndot_step(x, state, lif, ndot))
            stored.append(state["trace"].trace)
        else:
            spikes.append(lif_step(x, state, lif, decay))
            stored.append(state["trace"])
    return torch.stack(spikes), None if stored[0] is None else torch.stack(stored), state


@pytest.mark.parametrize("layout", ["plain", "channels last", "time last"])
@pytest.mark.parametrize(
    ("v_reset", "decay_input", "tau", "form", "decay", "ndot", "function"),
    [
        (None, False, 2.0, "packed", 0.5, None, surrogate.Sigmoid),
        (0.0, True, 2.0, "packed", 0.0, None, surrogate.ATan),
        (-0.2, True, 1.7, "float32", 1 - 1 / 1.7, None, surrogate.PiecewiseQuadratic),
        (None, False, 1.7, "float16", 0.4, None, surrogate.Rect),
        (None, False, 2.0, None, 0.0, None, surrogate.Sigmoid),
        (None, False, 2.0, "packed", 0.5, None, surrogate.SoftSign),
        (None, False, 2.0, None, 0.0, "paper", surrogate.Sigmoid),
        (0.0, False, 2.0, None, 0.0, "code", surrogate.Sigmoid),
    ],
)
def test_a_chunk_is_its_steps(v_reset, decay_input, tau, form, decay, ndot, function, layout):
    lif = LIF(tau, decay_input, 1.0, v_reset, function())
    torch.manual_seed(0)
    shape = SHAPES["images" if layout == "channels last" else "rows"]
    x = _laid_out(torch.randn(5, *shape, dtype=torch.float64) + 0.5, layout)
    grad, grad_v = torch.randn_like(x), torch.randn_like(x[0])
    results = []
    for run in (_chunk, _steps):
        x_seq = x.clone().requires_grad_()
        spike, stored, state = run(x_seq, lif, form, decay, ndot)
        ((spike * grad).sum() + (state["v"] * grad_v).sum()).backward()
        kept = state["trace"]
        kept = list(kept) if isinstance(kept, NDOTState) else [kept]
        results.append([spike, stored, state["v"], x_seq.grad, *kept])
    assert 0.05 < results[0][0].mean() < 0.95
    assert results[0][3].norm() > 0.1
    for ours, theirs in zip(*results, strict=True):
        if theirs is None:
            assert ours is None
        else:
            assert ours.dtype == theirs.dtype
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_neurons_beyond_a_block_take_part(monkeypatch):
    lif = LIF(2.0, False, 1.0, None, surrogate.Sigmoid())
    x = torch.randn(4, 3, 7, dtype=torch.float64)
    whole = _chunk(x, lif, "packed", 0.5, None)
    monkeypatch.setattr(blocks, "_BLOCK", 4)
    parts = _chunk(x, lif, "packed", 0.5, None)
    assert torch.equal(whole[0], parts[0])
    assert torch.equal(whole[1], parts[1])


def test_a_chunk_keeps_five_bytes_per_neuron_and_step():
    lif = LIF(2.0, False, 1.0, None, surrogate.Sigmoid())
    x = torch.randn(4, 3, 7, requires_grad=True)
    spike, stored, state = _chunk(x, lif, "packed", 0.5, None)
    kept = (*spike.grad_fn.saved_tensors, stored)
    assert _bytes(*kept, state["v"], state["trace"]) == 5 * x.numel()
    before = {key: value.clone() for key, value in state.items()}
    spike.sum().backward()  # from here on the state needs but its own step
    assert _bytes(state["v"], state["trace"]) == 5 * x[0].numel()
    assert all(torch.equal(state[key], before[key]) for key in state)
    assert torch.equal(state["trace"], stored[-1])


def _bytes(*tensors):
    storages = [t.untyped_storage() for t in tensors]
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values())


def test_the_top_bit_of_a_packed_trace_is_the_spike():
    lif = LIF(2.0, False, 1.0, None, surrogate.Sigmoid())
    spike, stored, _ = _chunk(torch.randn(4, 3, 7) + 0.5, lif, "packed", 0.5, None)
    assert torch.equal(stored >= 128, spike > 0)
