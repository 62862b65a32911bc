"""Weights of networks without spikes: what fits is taken, and what does not is said."""

import pytest
import timm
import torch
from timm.models import nfnet
from torch import nn
from torchvision.models import resnet

from sj_ottt import InputError
from sj_ottt.models import NFResNet, NFResNetCfg, load_ann_weights
from sj_ottt.zoo import adapt_input_channels

WIDTHS = (8, 8, 16, 16)


def ours(bottleneck, depths=(1, 2, 1, 1), **kwargs):
    torch.manual_seed(0)
    return NFResNet(NFResNetCfg(depths, bottleneck, WIDTHS), **{"num_classes": 5, **kwargs})


def nf_resnet():
    torch.manual_seed(1)
    cfg = nfnet.NfCfg(
        depths=(1, 2, 1, 1), channels=(32, 32, 64, 64), stem_type="7x7_pool", stem_chs=8,
        num_features=0, bottle_ratio=0.25, ch_div=8, act_layer="relu", gamma_in_act=False,
    )  # fmt: skip
    return nfnet.NormFreeNet(cfg, num_classes=5)


class Narrow(resnet.ResNet):
    """torchvision's ResNet, of few channels."""

    def __init__(self, block):
        super().__init__(resnet.BasicBlock, [0, 0, 0, 0], num_classes=7)
        torch.manual_seed(2)
        self.inplanes = 8
        self.conv1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False)
        for i, (width, depth) in enumerate(zip(WIDTHS, (1, 2, 1, 1), strict=True)):
            layers = self._make_layer(block, width, depth, stride=1 if i == 0 else 2)
            setattr(self, f"layer{i + 1}", layers)
        self.fc = nn.Linear(16 * block.expansion, 7)


def test_an_nf_resnet_gives_all_its_parameters():
    theirs, model = nf_resnet(), ours(True)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = load_ann_weights(model, theirs, "timm's nf_resnet")
    state = theirs.state_dict()
    assert not found.left_out and not found.adapted
    assert {name.rpartition(".")[2] for name in found.own} == {"skipinit"}
    for place, name in found.taken.items():
        assert torch.equal(model.get_parameter(place), state[name])
    assert found.taken["layer2.1.branch.4.gain"] == "stages.1.1.conv3.gain"
    assert len({*found.taken.values()}) == len(state)
    assert any(not torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert str(found).startswith("ANN weights of timm's nf_resnet: ")
    assert model(torch.randn(2, 3, 32, 32)).isfinite().all()


def test_averaged_shortcuts_take_the_same_weights():
    """Which timm's nf_resnet averages before, too."""
    theirs = nf_resnet()
    torch.manual_seed(0)
    cfg = NFResNetCfg((1, 2, 1, 1), True, WIDTHS, avg_down=True)
    model = NFResNet(cfg, num_classes=5)
    found = load_ann_weights(model, theirs)
    assert not found.left_out
    weight = model.layer2[0].downsample[1].weight
    assert torch.equal(weight, theirs.state_dict()["stages.1.0.downsample.conv.weight"])


@pytest.mark.parametrize("block", [resnet.BasicBlock, resnet.Bottleneck])
def test_a_resnet_gives_its_convolutions(block):
    theirs, model = Narrow(block), ours(block is resnet.Bottleneck, in_chans=2)
    found = load_ann_weights(model, theirs.state_dict())
    reasons = found.left_out
    assert reasons["bn1.weight"] == "batch norm, which ours has none of"
    assert reasons["layer2.0.downsample.1.bias"] == "batch norm, which ours has none of"
    assert reasons["fc.bias"] == "shape [7], ours is [5]"
    convs = {k for k, v in theirs.named_parameters() if v.dim() == 4}
    # Of theirs, a shortcut without a change of shape is the input itself; of ours, too.
    assert {*found.taken.values()} == convs
    assert found.adapted == ("stem.weight",)
    assert torch.equal(model.layer2[1].branch[2].weight, theirs.layer2[1].conv2.weight)
    assert {"fc.weight", "stem.gain", "layer1.0.skipinit"} <= {*found.own}
    names = {k for k, _ in model.named_parameters()}
    assert {*found.taken} | {*found.own} == names and not {*found.taken} & {*found.own}


@pytest.mark.parametrize("avg_down", [False, True])
def test_shortcuts_of_a_resnet_d_are_convolutions(avg_down):
    """Averaging stands before them, and so their numbers are those of other networks' norms."""
    theirs = {}
    for name, value in Narrow(resnet.BasicBlock).state_dict().items():
        name = name.replace("downsample.1.", "downsample.2.")
        theirs[name.replace("downsample.0.", "downsample.1.")] = value
    torch.manual_seed(0)
    model = NFResNet(NFResNetCfg((1, 2, 1, 1), False, WIDTHS, avg_down=avg_down), num_classes=5)
    found = load_ann_weights(model, theirs)
    shortcut = model.layer3[0].downsample
    weight = shortcut[1].weight if avg_down else shortcut.weight
    assert torch.equal(weight, theirs["layer3.0.downsample.1.weight"])
    assert {v for k, v in found.left_out.items() if "downsample" in k} == {
        "batch norm, which ours has none of"
    }


@pytest.mark.parametrize(("base", "channels"), [(1, 2), (2, 3), (3, 2), (2, 1)])
def test_any_input_channels_fit(base, channels):
    theirs = {**Narrow(resnet.BasicBlock).state_dict(), "conv1.weight": torch.rand(8, base, 7, 7)}
    model = ours(False, in_chans=channels)
    assert load_ann_weights(model, theirs).adapted == ("stem.weight",)
    adapted = adapt_input_channels(theirs["conv1.weight"], channels)
    assert torch.equal(model.stem.weight, adapted)


def test_what_does_not_fit_at_all_is_refused_and_changes_nothing():
    model = ours(False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(InputError, match=r"no convolution of vgg fits this NFResNet: give timm's"):
        load_ann_weights(model, {"features.0.weight": torch.zeros(8, 3, 3, 3)}, "vgg")
    only_the_first = {"conv1.weight": torch.zeros(8, 3, 7, 7)}
    with pytest.raises(InputError, match="no convolution"):
        load_ann_weights(model, only_the_first)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.slow
def test_the_published_sizes_fit():
    for theirs, name in (("nf_resnet50", "ottt_nf_resnet50"), ("resnet34", "ottt_nf_resnet34")):
        model = timm.create_model(name, num_classes=1000, in_chans=3)
        found = load_ann_weights(model, timm.create_model(theirs), theirs)
        assert not [n for n, why in found.left_out.items() if "batch norm" not in why]
        assert all(n.rpartition(".")[2] in ("skipinit", "gain", "bias") for n in found.own)
