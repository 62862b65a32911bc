"""Averaged shortcuts: what they see, and that their gradient is the rule's."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from sj_ottt import InputError, set_rule
from sj_ottt.models.classifier import default_neuron
from sj_ottt.models.ottt_nf_resnet import Block, NFResNetCfg

GAMMA, DECAY = 2.74, 0.5


def standardized(conv):
    weight, gain = conv.weight, conv.gain
    mean = weight.mean((1, 2, 3), keepdim=True)
    var = weight.var((1, 2, 3), keepdim=True)
    return gain * (weight - mean) / (var * weight[0].numel() + conv.eps).sqrt()


def averaged(z):
    """The mean of each 2 x 2 places, of what there is of them at an odd border."""
    ones = F.pad(torch.ones_like(z), (0, z.shape[-1] % 2, 0, z.shape[-2] % 2))
    padded = F.pad(z, (0, z.shape[-1] % 2, 0, z.shape[-2] % 2))
    parts = [(padded[..., i::2, j::2], ones[..., i::2, j::2]) for i in (0, 1) for j in (0, 1)]
    return sum(value for value, _ in parts) / sum(count for _, count in parts)


@pytest.mark.parametrize("size", [(8, 8), (9, 7), (5, 2)])
@pytest.mark.parametrize("rule", ["ottt", "sltt"])
def test_a_strided_shortcuts_output_and_gradient(rule, size):
    """In float64; its branch is closed, so that the output is the shortcut's alone."""
    torch.manual_seed(0)
    cfg = NFResNetCfg((1,), avg_down=True)
    block = set_rule(Block(cfg, 4, 6, 2, 1.0, default_neuron).double(), rule)
    conv = block.downsample[1]
    nn.init.uniform_(conv.gain, 0.5, 2.0)
    x_seq = 2 * torch.randn(5, 3, 4, *size, dtype=torch.double)
    errors = torch.randn(5, 3, 6, -(-size[0] // 2), -(-size[1] // 2), dtype=torch.double)
    u, trace, total, strided = 0.0, 0.0, 0.0, 0.0
    for x, error in zip(x_seq, errors, strict=True):
        u = DECAY * u + x
        spike = (u >= 1).double()
        u = u - spike
        trace = (DECAY if rule == "ottt" else 0.0) * trace + spike
        out = block(x)
        kept = F.conv2d(averaged(GAMMA * spike), standardized(conv), conv.bias)
        torch.testing.assert_close(out, kept, rtol=1e-12, atol=1e-12)
        (out * error).sum().backward()
        total = total + (F.conv2d(averaged(GAMMA * trace), standardized(conv)) * error).sum()
        plain = F.conv2d(GAMMA * trace, standardized(conv), stride=2)
        strided = strided + (plain * error).sum()
    for name in ("weight", "gain"):
        parameter = conv.get_parameter(name)
        (expected,) = torch.autograd.grad(total, parameter, retain_graph=True)
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-9, atol=1e-12)
        (control,) = torch.autograd.grad(strided, parameter, retain_graph=True)
        assert (control - expected).norm() > 0.1 * expected.norm() > 0
    torch.testing.assert_close(conv.bias.grad, errors.sum((0, 1, 3, 4)))


def test_every_place_of_a_small_input_is_seen():
    """With closed branches, at 34 pixels; the authors' network sees nothing of most of them."""
    seen = {}
    for name in ("ottt_nf_resnet18", "ottt_nf_resnet18d"):
        torch.manual_seed(0)
        model = timm.create_model(name, in_chans=2, num_classes=2).eval().double()
        nn.init.normal_(model.fc.weight)
        maps = {}
        for block in model.modules():  # linear all the way, so that nothing is lost by chance
            if isinstance(block, Block):
                block.act = nn.Identity()
        x = torch.randn(1, 2, 34, 34, dtype=torch.double, requires_grad=True)
        stem = model.stem_pool(model.stem(x)).detach().requires_grad_()
        y = stem
        for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
            y = stage(y)
        model.forward_head(y)[0, 0].backward()
        maps[name] = stem.grad
        seen[name] = (maps[name] != 0).any(1).double().mean().item()
    assert seen["ottt_nf_resnet18"] < 0.06 and seen["ottt_nf_resnet18d"] == 1.0


def test_weights_of_the_authors_network_are_refused(tmp_path):
    """Their shortcuts mean another thing."""
    plain = timm.create_model("ottt_nf_resnet18", in_chans=2, num_classes=2)
    file = tmp_path / "plain.pt"
    torch.save(plain.state_dict(), file)
    averaging = timm.create_model("ottt_nf_resnet18d", in_chans=2, num_classes=2)
    with pytest.raises(InputError, match=r"does not fit NFResNet: .* layer2\.0\.downsample"):
        averaging.load_pretrained(file)
    numbers = [sum(p.numel() for p in model.parameters()) for model in (plain, averaging)]
    assert numbers[0] == numbers[1]
    assert "ottt_nf_resnet34d" in timm.list_models("ottt_*")
    assert not timm.list_pretrained("ottt_nf_resnet34d")
