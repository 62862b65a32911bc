"""Scaled weight standardization."""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from sj_ottt import InputError, functional, layer
from sj_ottt._ops import cpp, standardize
from sj_ottt._ops.blocks import give_away

needs_compiler = pytest.mark.skipif(
    cpp.missing() is not None, reason=f"no kernels here: {cpp.missing()}"
)


@pytest.fixture
def kernels(monkeypatch):
    """The kernels that run."""
    names, run = [], standardize._run
    monkeypatch.setattr(standardize, "_run", lambda *a: names.append(a[0]) or run(*a))
    return names


def without_kernels(monkeypatch):
    monkeypatch.setattr(standardize, "_has_kernel", lambda *tensors: False)


def test_scaled_weight_standardization_against_its_definition():
    torch.manual_seed(0)
    w = torch.randn(3, 2, 3, 3, dtype=torch.double)
    gain = torch.rand(3, 1, 1, 1, dtype=torch.double)
    expected = torch.empty_like(w)
    for i in range(3):
        values = w[i].flatten()
        mean = values.sum() / 18
        var = ((values - mean) ** 2).sum() / 17  # unbiased
        expected[i] = gain[i] * (w[i] - mean) / (var * 18 + 1e-4) ** 0.5
    torch.testing.assert_close(functional.scaled_weight_standardization(w, gain, 1e-4), expected)


@pytest.mark.parametrize(
    "shape", [(), (3,), (1, 1, 1, 1), (3, 2, 1, 1), (1, 2, 3, 3), (4, 1, 1, 1)]
)
def test_a_gain_of_another_shape_is_refused(shape):
    """It would be read where it is not."""
    with pytest.raises(InputError, match=r"gain of shape \[.*weight of shape \[3, 2, 3, 3\]"):
        functional.scaled_weight_standardization(torch.randn(3, 2, 3, 3), torch.ones(shape), 1e-4)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(8, 4, 3, 3), (8, 20)])
def test_autocast_does_not_reach_it(half, shape):
    torch.manual_seed(0)
    w, gain = torch.randn(shape).requires_grad_(), torch.rand(8, *[1] * (len(shape) - 1))
    gain.requires_grad_()
    grad = torch.randn(shape)

    def run(enabled: bool) -> list[torch.Tensor]:
        with torch.autocast("cpu", half, enabled=enabled):
            made = functional.scaled_weight_standardization(w, gain, 1e-4)
            return [made, *torch.autograd.grad(made, (w, gain), grad)]

    for cast, plain in zip(run(True), run(False), strict=True):
        assert cast.dtype == torch.float32 and torch.equal(cast, plain)


@pytest.mark.parametrize("with_gain", [True, False])
@pytest.mark.parametrize("block", [1, 1 << 17, "kernel"])
def test_the_gradient_is_that_of_the_definition(monkeypatch, block, with_gain):
    """By PyTorch's own differentiation; block by block, all at once, or as a kernel."""
    if block != "kernel":
        without_kernels(monkeypatch)
        monkeypatch.setattr(standardize, "_BLOCK", block)
    torch.manual_seed(0)
    w = torch.randn(6, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    gain = (1 + torch.rand(6, 1, 1, 1, dtype=torch.float64)).requires_grad_()
    var, mean = torch.var_mean(w, (1, 2, 3), keepdim=True)
    expected = (w - mean) / torch.sqrt(var * 36 + 1e-4) * (gain if with_gain else 1)
    made = standardize.scaled_weight_standardization(w, gain if with_gain else None, 1e-4)
    wanted = (w, gain) if with_gain else (w,)
    grad = torch.randn_like(w)
    for found, right in zip(
        torch.autograd.grad(made, wanted, grad),
        torch.autograd.grad(expected, wanted, grad),
        strict=True,
    ):
        torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-12)


LAYOUTS = {
    "plain": ((0, 1, 2, 3), (0, 1, 2, 3)),
    "result channels last": ((0, 1, 2, 3), (0, 2, 3, 1)),
    "weight channels last": ((0, 2, 3, 1), (0, 1, 2, 3)),
    "both channels last": ((0, 2, 3, 1), (0, 2, 3, 1)),
    "rows first": ((0, 1, 2, 3), (0, 2, 1, 3)),  # which only blocks can do
}


def laid_out(x, order):
    """A tensor whose dimensions follow each other in memory in an order."""
    back = sorted(range(len(order)), key=order.__getitem__)
    return x.permute(order).contiguous().permute(back)


@needs_compiler
@pytest.mark.parametrize("gain", [None, "some", "with a 0"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "shape",
    [(6, 4, 3, 3), (5, 130, 3, 2), (300, 65, 2, 2), (7, 3, 1, 1), (4, 1, 5, 5), (9, 9, 3, 1)],
)
def test_a_kernel_is_the_blocks(shape, layout, gain, kernels, monkeypatch):
    torch.manual_seed(0)
    of_weight, of_result = LAYOUTS[layout]
    grad = laid_out(torch.randn(shape), of_result)
    for dtype in (torch.float64, torch.float32):
        w = laid_out(3 + torch.randn(shape, dtype=dtype), of_weight).requires_grad_()
        wanted = [w]
        if gain:
            scale = 0.5 + torch.rand(shape[0], 1, 1, 1, dtype=dtype)
            scale[0] = 0.0 if "0" in gain else 1.0
            wanted.append(scale.requires_grad_())
        found = []
        for kernel in (True, False):
            kernels.clear()
            with monkeypatch.context() as patch:
                if not kernel:
                    without_kernels(patch)
                out = laid_out(torch.empty(shape, dtype=dtype), of_result)
                given = [*wanted, None][:2]
                made = standardize.scaled_weight_standardization(*given, 1e-4, out)
                grads = torch.autograd.grad(made, wanted, grad.to(dtype))
            fits = layout != "rows first" or 1 in shape[1:3]  # dimensions of size 1 have no order
            assert kernels == (["forward", "backward"] if kernel and fits else [])
            assert made.stride() == out.stride() and grads[0].stride() == w.stride()
            found.append([made.detach(), *grads])
        for ours, plain in zip(*found, strict=True):
            scale = plain.abs().max() * torch.finfo(dtype).eps
            assert plain.abs().max() > 0 and (ours - plain).abs().max() < 20 * scale


@needs_compiler
@pytest.mark.parametrize("shape", [(4, 30), (4, 30, 5), (4, 3, 2, 2, 3), (3, 70000)])
def test_a_kernel_takes_weights_of_any_layer(shape, kernels, monkeypatch):
    """And by several threads; a row may be long."""
    torch.manual_seed(0)
    w = (10 + torch.randn(shape)).requires_grad_()
    grad = torch.randn(shape)
    made = functional.scaled_weight_standardization(w, None, 1e-4)
    (ours,) = torch.autograd.grad(made, w, grad)
    assert kernels == ["forward", "backward"]
    exact = w.detach().double().requires_grad_()
    without_kernels(monkeypatch)
    expected = functional.scaled_weight_standardization(exact, None, 1e-4)
    (theirs,) = torch.autograd.grad(expected, exact, grad.double())
    eps = 20 * torch.finfo(torch.float32).eps
    for a, b in ((made, expected), (ours, theirs)):
        assert (a - b).abs().max() < eps * b.abs().max()


@needs_compiler
@pytest.mark.parametrize("layout", ["plain", "result channels last", "weight channels last"])
def test_a_gradient_that_is_given_away_becomes_that_of_the_weight(layout):
    of_weight, of_result = LAYOUTS[layout]
    w = laid_out(torch.randn(4, 3, 3, 3), of_weight).requires_grad_()
    room, grad = (laid_out(torch.randn(4, 3, 3, 3), of_result) for _ in range(2))
    found = []
    for given in (False, True):
        made = standardize.scaled_weight_standardization(w, None, 1e-4, room)
        copy = grad.clone()
        if given:
            give_away(copy)
        w.grad = None
        made.backward(copy)
        assert (w.grad.data_ptr() == copy.data_ptr()) == given
        assert torch.equal(copy, grad) != given and w.grad.stride() == w.stride()
        found.append(w.grad)
    assert torch.equal(*found)


@needs_compiler
def test_a_result_that_is_written_again_is_not_taken_for_the_first():
    """PyTorch would not see that a kernel writes."""
    w, room = torch.randn(4, 3, 3, 3).requires_grad_(), torch.empty(4, 3, 3, 3)
    made = standardize.scaled_weight_standardization(w, None, 1e-4, room)
    standardize.scaled_weight_standardization(2 * w, None, 1e-4, room)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        made.sum().backward()


@needs_compiler
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
def test_what_is_recorded_or_has_no_numbers_is_left_to_pytorch(kernels):
    """A kernel would not be in the record, and knows addresses alone."""
    torch.manual_seed(0)
    net = nn.Sequential(layer.WSConv2d(2, 3, 3), nn.Flatten(), layer.WSLinear(3 * 36, 4))
    x, other = torch.randn(2, 1, 2, 8, 8)
    weights = [p.detach().clone() for p in net.parameters()]
    with torch.no_grad():
        traced = torch.jit.trace(net, x, check_trace=False)
        made = make_fx(lambda w, x: torch.func.functional_call(net, w, (x,)))
        made = made(dict(net.named_parameters()), x)
    assert not kernels
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(2).add_(torch.randn_like(p))
        expected = net(other)
        assert kernels == ["forward"] * 2
        torch.testing.assert_close(traced(other), expected)
        torch.testing.assert_close(made(dict(net.named_parameters()), other), expected)
    assert all(not torch.equal(p, w) for p, w in itertools.zip_longest(net.parameters(), weights))
    kernels.clear()
    assert math.isfinite(functional.scaled_weight_standardization(weights[0].half(), None, 1).sum())
    assert functional.scaled_weight_standardization(weights[0].to("meta"), None, 1e-4).is_meta
    narrow = standardize.scaled_weight_standardization(
        weights[0].double(), None, 1e-4, torch.empty_like(weights[0])
    )
    expected = functional.scaled_weight_standardization(weights[0], None, 1e-4)
    torch.testing.assert_close(narrow, expected)
    assert kernels.pop() == "forward"  # of what was expected
    assert not kernels
