"""Calibration: what each layer gives afterwards, on the same data, measured from outside."""

import pytest
import timm
import torch
from torch import nn

from sj_ottt import InputError, layer, neuron
from sj_ottt.learning import predict
from sj_ottt.models import calibrate


def spreads(model, x):
    """The standard deviation of each standardized layer's output."""
    found = []
    convolutions = [m for m in model.modules() if isinstance(m, layer.WSConv2d)]
    hooks = [m.register_forward_hook(lambda m, a, y: found.append(y.std())) for m in convolutions]
    predict(model, x[None])
    for hook in hooks:
        hook.remove()
    assert len(found) == len(convolutions)
    return torch.stack(found)


@pytest.mark.parametrize("name", ["test_ottt_nf_resnet", "ottt_vgg5_ws"])
def test_every_layer_has_a_variance_of_one_on_sparse_frames(name):
    torch.manual_seed(0)
    model = timm.create_model(name, in_chans=2, num_classes=3)
    x = 6 * (torch.rand(8, 2, 32, 32) < 0.05).float()
    before = spreads(model, x)
    calibrate(model, x)
    torch.testing.assert_close(spreads(model, x), torch.ones(len(before)), atol=1e-3, rtol=0)
    assert (before - 1).abs().max() > 0.3  # without it they differ
    assert not any(module._forward_hooks for module in model.modules())
    assert all(p != 0 for n, p in model.named_parameters() if n.endswith("skipinit"))


def test_biases_are_scaled_too():
    """PyTorch's are random; and a layer that is called twice gives its variance the first time."""
    torch.manual_seed(0)
    twice = layer.WSConv2d(8, 8, 3, padding=1)
    model = layer.OTTTSequential(
        layer.WSConv2d(2, 8, 3, padding=1), neuron.OTTTLIFNode(),
        layer.WSConv2d(8, 8, 1, bias=False), neuron.OTTTLIFNode(),
        twice, neuron.OTTTLIFNode(), twice, layer.Flatten(), layer.WSLinear(8 * 256, 10),
    )  # fmt: skip
    found = []
    for module in (model[0], model[2], twice, model[-1]):
        module.register_forward_hook(lambda m, a, y: found.append(y.std()))
    x = (torch.rand(4, 2, 16, 16) < 0.02).float()
    calibrate(model, x)
    found.clear()
    predict(model, x[None])
    first = torch.stack([*found[:3], found[4]])
    torch.testing.assert_close(first, torch.ones(4), atol=1e-3, rtol=0)


def test_what_cannot_be_calibrated_is_named():
    with pytest.raises(InputError, match="Sequential has none"):
        calibrate(nn.Sequential(layer.Linear(3, 2)), torch.rand(4, 3))
    model = timm.create_model("test_ottt_nf_resnet", in_chans=2, num_classes=3)
    with pytest.raises(InputError, match="stem gives 0 everywhere"):
        calibrate(model, torch.zeros(2, 2, 32, 32))
    assert not any(module._forward_hooks for module in model.modules())
