"""Normalisation-free residual networks of spiking neurons, as in the paper's appendix C."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from sj_ottt import layer
from sj_ottt.models.classifier import (
    NeuronFactory,
    SpikingClassifier,
    create,
    default_neuron,
    init_convs,
    init_linear,
    timm_cfg,
    zoo_cfgs,
)


@dataclass(frozen=True)
class NFResNetCfg:
    """A variant.

    Attributes:
        depths: Blocks of each stage.
        bottleneck: 1×1, 3×3, 1×1 blocks instead of two 3×3 convolutions.
        widths: Channels of the inner convolutions, stage by stage; the first is the stem's too.
        alpha: Scale of each residual branch.
        gamma: Factor on the spikes behind each neuron; 2.74 keeps the variance under sWS.
        avg_down: Average 2×2 places on a strided shortcut, as ResNet-D does, instead of leaving
            three of four out.
    """

    depths: tuple[int, ...]
    bottleneck: bool = False
    widths: tuple[int, ...] = (64, 128, 256, 512)
    alpha: float = 0.2
    gamma: float = 2.74
    avg_down: bool = False

    @property
    def expansion(self) -> int:
        """Output channels of a block over its inner channels."""
        return 4 if self.bottleneck else 1

    @property
    def n_features(self) -> int:
        """Number of feature maps, the stem's included."""
        return 1 + len(self.depths)


class Block(nn.Module):
    """One pre-activation residual block: out = α · skipinit · F(z) + skip, z = γ · neuron(x / β).

    The input and the output are real-valued; every convolution sees spikes and is traced. The
    shortcut is x itself, or a 1×1 convolution of z where the shape changes: of every second place,
    or with `avg_down` of the means of 2×2 places.

    Args:
        cfg: The variant.
        in_channels: Channels of the input.
        width: Inner channels.
        stride: Stride of the block.
        beta: Expected standard deviation of the input.
        neuron: Makes one neuron; by default with tau=2 and a packed trace.
    """

    def __init__(
        self,
        cfg: NFResNetCfg,
        in_channels: int,
        width: int,
        stride: int,
        beta: float,
        neuron: NeuronFactory,
    ):
        super().__init__()
        out_channels = width * cfg.expansion
        conv = layer.WSConv2d

        def act() -> layer.OTTTSequential:
            return layer.OTTTSequential(neuron(), layer.Scale(cfg.gamma))

        self.beta = beta
        self.alpha = cfg.alpha
        self.act = act()
        self.downsample: nn.Module | None = None
        if stride != 1 and cfg.avg_down:
            # The mean of what there is where a side is odd, so that it is as long as the branch's.
            pool = layer.AvgPool2d(2, stride, ceil_mode=True)
            self.downsample = layer.OTTTSequential(pool, conv(in_channels, out_channels, 1))
        elif stride != 1 or in_channels != out_channels:
            self.downsample = conv(in_channels, out_channels, 1, stride=stride)
        branch: list[nn.Module]
        if cfg.bottleneck:
            branch = [
                conv(in_channels, width, 1),
                act(),
                conv(width, width, 3, stride=stride, padding=1),
                act(),
                conv(width, out_channels, 1),
            ]
        else:
            branch = [
                conv(in_channels, width, 3, stride=stride, padding=1),
                act(),
                conv(width, out_channels, 3, padding=1),
            ]
        self.branch = layer.OTTTSequential(*branch)
        self.skipinit = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, C_out, H', W'], one time step (or [T, N, ...], step mode "m")."""
        z = self.act(x / self.beta)
        skip = x if self.downsample is None else self.downsample(z)
        return self.alpha * self.skipinit * self.branch(z) + skip


class NFResNet(SpikingClassifier):
    """Stem, average pooling, four stages of residual blocks, global pooling, linear readout.

    The stem and the readout have real-valued inputs and so no trace. Any size of input will do; a
    side of n pixels ends as n / 32, rounded up: one pixel at 32, 11 at 346. At the start the
    branches are closed, so that all goes through the shortcuts, which leave out 63 of 64 places of
    the pooled stem. Where the input is small, `avg_down` averages them instead.

    Args:
        cfg: The variant.
        num_classes: Size of the output; 0 leaves the classifier out.
        in_chans: Number of input channels; 2 for event frames.
        global_pool: "avg", or "" for the unpooled feature map.
        drop_rate: Dropout before the classifier, one mask per sequence.
        neuron: Makes one neuron; by default with tau=2 and a packed trace.
        readout: "membrane", or "traced" and "exact", which agree here; see `SpikingClassifier`.
    """

    def __init__(
        self,
        cfg: NFResNetCfg,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        neuron: NeuronFactory = default_neuron,
        readout: str = "traced",
    ):
        channels = cfg.widths[0]
        stages: dict[str, nn.Module] = {
            "stem": layer.WSConv2d(in_chans, channels, 7, stride=2, padding=3),
            "stem_pool": layer.AvgPool2d(3, stride=2, padding=1),
        }
        feature_info = [{"num_chs": channels, "reduction": 2, "module": "stem"}]
        variance = 1.0
        for i, (depth, width) in enumerate(zip(cfg.depths, cfg.widths, strict=True)):
            blocks = []
            for j in range(depth):
                stride = 2 if i > 0 and j == 0 else 1
                block = Block(cfg, channels, width, stride, math.sqrt(variance), neuron)
                variance = (1.0 if block.downsample is not None else variance) + cfg.alpha**2
                channels = width * cfg.expansion
                blocks.append(block)
            stages[f"layer{i + 1}"] = nn.Sequential(*blocks)
            feature_info.append(
                {"num_chs": channels, "reduction": 4 * 2**i, "module": f"layer{i + 1}"}
            )
        init_fc: Callable[[nn.Linear], None] = partial(init_linear, std=0.0)
        super().__init__(
            stages,
            feature_info,
            "stem",
            num_classes=num_classes,
            in_chans=in_chans,
            global_pool=global_pool,
            drop_rate=drop_rate,
            readout=readout,
            init_fc=init_fc,
        )
        init_convs(self)


_VARIANTS = {
    "ottt_nf_resnet18": NFResNetCfg((2, 2, 2, 2)),
    "ottt_nf_resnet34": NFResNetCfg((3, 4, 6, 3)),
    "ottt_nf_resnet50": NFResNetCfg((3, 4, 6, 3), bottleneck=True),
    "ottt_nf_resnet101": NFResNetCfg((3, 4, 23, 3), bottleneck=True),
    "ottt_nf_resnet18d": NFResNetCfg((2, 2, 2, 2), avg_down=True),
    "ottt_nf_resnet34d": NFResNetCfg((3, 4, 6, 3), avg_down=True),
    "test_ottt_nf_resnet": NFResNetCfg((1, 2), bottleneck=True, widths=(8, 16)),
    "test_ottt_nf_resnetd": NFResNetCfg((1, 2), widths=(8, 16), avg_down=True),
}


def _cfg(**kwargs: Any) -> dict[str, Any]:
    imagenet = {"input_size": (3, 224, 224), "pool_size": (7, 7), "num_classes": 1000}
    return timm_cfg("stem", **{**imagenet, **kwargs})


def _small_cfg() -> dict[str, Any]:
    return _cfg(input_size=(3, 32, 32), pool_size=(4, 4), num_classes=10)


default_cfgs = generate_default_cfgs(
    {
        "ottt_nf_resnet18.untrained": _cfg(),
        "ottt_nf_resnet34.untrained": _cfg(),
        "ottt_nf_resnet50.untrained": _cfg(),
        "ottt_nf_resnet101.untrained": _cfg(),
        "ottt_nf_resnet18d.untrained": _cfg(),
        "ottt_nf_resnet34d.untrained": _cfg(),
        "test_ottt_nf_resnet.untrained": _small_cfg(),
        "test_ottt_nf_resnetd.untrained": _small_cfg(),
        **zoo_cfgs("stem", _VARIANTS),
    }
)


@register_model
def ottt_nf_resnet18(pretrained: bool = False, **kwargs: Any) -> NFResNet:
    """Build NF-ResNet-18 (11.7M parameters with 1,000 classes)."""
    return create(NFResNet, _VARIANTS["ottt_nf_resnet18"], "ottt_nf_resnet18", pretrained, **kwargs)


@register_model
def ottt_nf_resnet34(pretrained: bool = False, **kwargs: Any) -> NFResNet:
    """Build NF-ResNet-34, the paper's for ImageNet (21.8M parameters with 1,000 classes)."""
    return create(NFResNet, _VARIANTS["ottt_nf_resnet34"], "ottt_nf_resnet34", pretrained, **kwargs)


@register_model
def ottt_nf_resnet50(pretrained: bool = False, **kwargs: Any) -> NFResNet:
    """Build NF-ResNet-50."""
    return create(NFResNet, _VARIANTS["ottt_nf_resnet50"], "ottt_nf_resnet50", pretrained, **kwargs)


@register_model
def ottt_nf_resnet101(pretrained: bool = False, **kwargs: Any) -> NFResNet:
    """Build NF-ResNet-101."""
    return create(
        NFResNet, _VARIANTS["ottt_nf_resnet101"], "ottt_nf_resnet101", pretrained, **kwargs
    )


@register_model
def ottt_nf_resnet18d(pretrained: bool = False, **kwargs: Any) -> NFResNet:
    """Build NF-ResNet-18 with averaged shortcuts, for small sensors."""
    return create(
        NFResNet, _VARIANTS["ottt_nf_resnet18d"], "ottt_nf_resnet18d", pretrained, **kwargs
    )


@register_model
def ottt_nf_resnet34d(pretrained: bool = False, **kwargs: Any) -> NFResNet:
    """Build NF-ResNet-34 with averaged shortcuts, for small sensors."""
    return create(
        NFResNet, _VARIANTS["ottt_nf_resnet34d"], "ottt_nf_resnet34d", pretrained, **kwargs
    )


@register_model
def test_ottt_nf_resnet(pretrained: bool = False, **kwargs: Any) -> NFResNet:
    """Build a tiny NF-ResNet for tests."""
    return create(
        NFResNet, _VARIANTS["test_ottt_nf_resnet"], "test_ottt_nf_resnet", pretrained, **kwargs
    )


@register_model
def test_ottt_nf_resnetd(pretrained: bool = False, **kwargs: Any) -> NFResNet:
    """Build a tiny NF-ResNet with averaged shortcuts for tests."""
    return create(
        NFResNet, _VARIANTS["test_ottt_nf_resnetd"], "test_ottt_nf_resnetd", pretrained, **kwargs
    )
