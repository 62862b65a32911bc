"""Convolutions of few places as matrix products: equal to PyTorch's, and taken where they pay."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sj_ottt import layer, learning, neuron
from sj_ottt._ops.im2col import Patches
from sj_ottt._ops.synapse import Product

SHAPES = {
    "2 x 2": ((5, 3, 2, 2), (4, 3, 3, 3), (1, 1), (1, 1), (1, 1)),
    "half of 4 x 4": ((5, 3, 4, 4), (4, 3, 3, 3), (2, 2), (1, 1), (1, 1)),
    "one place": ((5, 3, 3, 3), (4, 3, 3, 3), (1, 1), (0, 0), (1, 1)),
    "no kernel": ((5, 3, 2, 4), (4, 3, 1, 1), (1, 1), (0, 0), (1, 1)),
    "each its own": ((2, 3, 7, 6), (4, 3, 3, 2), (3, 1), (2, 1), (1, 2)),
    "dilated": ((2, 3, 5, 5), (4, 3, 3, 3), (1, 1), (2, 2), (2, 2)),
    "rows that none sees": ((2, 3, 6, 6), (4, 3, 3, 3), (2, 2), (0, 0), (1, 1)),
    "far out": ((2, 3, 2, 2), (4, 3, 3, 3), (1, 1), (3, 4), (1, 1)),
}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("case", SHAPES)
def test_it_is_the_convolution(case, with_bias, channels_last, monkeypatch):
    """Output and gradients are PyTorch's, in any layout of the input and the weight."""
    monkeypatch.setattr(Patches, "pay", lambda self, dtype: True)
    torch.manual_seed(0)
    shape, kernel, *how = SHAPES[case]
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(shape, dtype=torch.double).contiguous(memory_format=layout).requires_grad_()
    w = torch.randn(kernel, dtype=torch.double).contiguous(memory_format=layout).requires_grad_()
    b = torch.randn(kernel[0], dtype=torch.double).requires_grad_() if with_bias else None
    expected = F.conv2d(x, w, b, *how)
    product = Product(*how)
    with torch.no_grad():
        assert product.few_patches(x, w)
        out = product(x, w, b)
        torch.testing.assert_close(out, expected)
        assert out.is_contiguous()
        g = torch.randn_like(expected)
        grads = product.gradients(g, x, w, True, True, with_bias)
    wanted = (x, w, b) if with_bias else (x, w)
    for ours, theirs in zip(grads, torch.autograd.grad(expected, wanted, g), strict=False):
        torch.testing.assert_close(ours, theirs)
    assert with_bias or grads[2] is None
    assert product.gradients(g, x, w, False, False, False) == (None, None, None)
    for layout in (torch.channels_last, torch.contiguous_format):
        total = torch.randn(kernel, dtype=torch.double).contiguous(memory_format=layout)
        before = total.clone()
        added = product.gradients(g, x, w, False, True, False, total)[1]
        in_place = total.is_contiguous(memory_format=torch.channels_last)
        assert (added is total) == in_place
        assert torch.equal(total, before) != in_place  # else whoever asks adds it
        torch.testing.assert_close(added - before if in_place else added, grads[1])


def test_where_it_pays():
    """Few places, or few rows for the channels; sooner in half precision."""

    def pays(n, channels, side, dtype=torch.float32):
        shape = torch.Size((n, channels, side, side))
        return Patches(shape, (3, 3), (1, 1), (1, 1), (1, 1)).pay(dtype)

    assert pays(128, 512, 2)
    assert pays(1, 512, 8)
    assert not pays(64, 512, 4)
    assert pays(64, 512, 4, torch.bfloat16)
    assert not pays(64, 512, 8, torch.bfloat16)
    assert not pays(16, 128, 2)
    assert not pays(0, 512, 2)
    assert not pays(2000, 512, 2), "the patches take too much memory"


def test_what_is_no_such_convolution_goes_the_ordinary_way():
    x, w = torch.randn(2, 256, 2, 2), torch.randn(256, 256, 3, 3)
    one = (1, 1)
    assert Product(one, one, one).few_patches(x, w)
    assert Product(one, one, one, groups=2).few_patches(x, w[:, :128]) is None
    assert Product(one, one, one, output_padding=(0, 0)).few_patches(x, w) is None
    assert Product().few_patches(x, w) is None
    assert Product((1,), (1,), (1,)).few_patches(x[0], w[0]) is None
    assert Product(one, (0, 0), one).few_patches(x, w) is None
    with pytest.raises(RuntimeError, match="channels"):
        Product(one, one, one)(x[:, :200], w, None)
    with torch.no_grad(), pytest.raises(RuntimeError, match="type"):
        Product(one, one, one)(x, w.double(), None)
    with pytest.raises(RuntimeError, match=r"[Kk]ernel size"):
        Product(one, (0, 0), one)(x, w, None)


def test_a_graph_of_pytorchs_own_keeps_no_patches():
    """Where autograd differentiates the product, it would keep nine times the map."""
    x, w = torch.randn(2, 256, 2, 2), torch.randn(256, 256, 3, 3, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()), lambda t: t):
        Product((1, 1), (1, 1), (1, 1))(x, w, None)
    assert sorted(kept) == [x.numel(), w.numel()]


def test_a_program_that_is_taken_away_holds_the_convolution():
    """Its batch may be of any size, and whoever reads it knows a convolution."""

    class OnPairs(nn.Module):
        def __init__(self):
            super().__init__()
            self.synapse = layer.Conv2d(256, 256, 3, padding=1)

        def forward(self, x):
            return self.synapse([x, x])

    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad():
        program = torch.export.export(
            OnPairs(), (torch.randn(2, 256, 2, 2),), dynamic_shapes=({0: batch},), strict=False
        )
    text = str(program.graph)
    assert "conv" in text and "as_strided" not in text


def test_autocast_asks_for_half_precision():
    x, w = torch.randn(2, 256, 2, 2), torch.randn(256, 256, 3, 3)
    bias, product = torch.randn(256), Product((1, 1), (1, 1), (1, 1))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert product.few_patches(x, w)
        assert product.few_patches(x.bfloat16(), w)  # as the layer before gave it
        out, expected = product(x, w, bias), F.conv2d(x, w, bias, padding=1)
    assert out.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), expected.float(), rtol=0.02, atol=0.5)


@pytest.mark.parametrize("chunk", [1, 3])
def test_a_network_learns_the_same_with_it(chunk, monkeypatch):
    """Two stages of few places: the same gradient as by convolutions."""

    def gradients():
        torch.manual_seed(0)
        lif = partial(neuron.OTTTLIFNode, v_threshold=0.1)
        model = layer.OTTTSequential(
            *(layer.Conv2d(2, 256, 3, stride=8, padding=1), lif()),
            *(layer.WSConv2d(256, 256, 3, stride=2, padding=1), lif()),
            *(layer.Conv2d(256, 128, 3, padding=1), lif()),
            *(nn.Flatten(), layer.Linear(512, 5)),
        ).double()
        x_seq = torch.randn(3, 2, 2, 32, 32, dtype=torch.double)
        still = torch.optim.SGD(model.parameters(), lr=0.0)
        learning.train_step(model, still, x_seq, torch.tensor([1, 3]), chunk=chunk)
        return [p.grad for p in model.parameters()]

    taken = []
    real = Patches.product
    monkeypatch.setattr(Patches, "product", lambda *args: taken.append(1) or real(*args))
    ours = gradients()
    assert len(taken) == 2 * 3 // chunk
    monkeypatch.setattr(Patches, "pay", lambda self, dtype: False)
    theirs = gradients()
    assert all(grad.abs().max() > 0 for grad in theirs)  # no silent network
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
