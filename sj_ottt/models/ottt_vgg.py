"""The paper's VGG with scaled weight standardization, and smaller ones of the same build."""

from collections.abc import MutableMapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from sj_ottt import layer
from sj_ottt.errors import InputError
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
class VGGCfg:
    """A variant: channels of the 3×3 convolutions, stage by stage.

    Attributes:
        stages: Output channels; 2×2 average pooling stands between the stages.
        gamma: Factor on the spikes behind each neuron; 2.74 keeps the variance under sWS.
        fc_std: Standard deviation of the readout's initial weights; 0.01 in the paper, more where
            a short training has to get off the ground.
        feedback: VGG-F: a 3×3 convolution from the last feature map to the first neurons, one step
            late, which starts at zero, without a bias where loaded weights bring none.
    """

    stages: tuple[tuple[int, ...], ...]
    gamma: float = 2.74
    fc_std: float = 0.01
    feedback: bool = False

    @property
    def n_features(self) -> int:
        """Number of feature maps."""
        return len(self.stages)


class VGG(SpikingClassifier):
    """[sWS convolution → neuron → × γ] in stages, global average pooling, linear readout.

    The readout is traced, as in the authors' code. The first convolution takes the input as it
    is and has no trace. Any size of input will do that the
    pools leave a pixel of: each halves a side and leaves an odd row out, so that 32 pixels end as 8
    behind two of them, and 346 as 86.

    Args:
        cfg: The variant.
        num_classes: Size of the output; 0 leaves the classifier out.
        in_chans: Number of input channels; 2 for event frames.
        global_pool: "avg", or "" for the unpooled feature map.
        drop_rate: Dropout before the classifier, one mask per sequence.
        spike_drop_rate: Dropout behind every neuron, one mask per sequence (0.1 in the paper's
            recipe for DVS-CIFAR10).
        neuron: Makes one neuron; by default with tau=2 and a packed trace.
        readout: "traced", "exact" or "membrane", see `SpikingClassifier`.
    """

    def __init__(
        self,
        cfg: VGGCfg,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        spike_drop_rate: float = 0.0,
        neuron: NeuronFactory = default_neuron,
        readout: str = "traced",
    ):
        stages: dict[str, nn.Module] = {}
        channels = in_chans
        for i, widths in enumerate(cfg.stages):
            modules: list[nn.Module] = [layer.AvgPool2d(2)] if i > 0 else []
            for width in widths:
                scale: nn.Module = layer.Scale(cfg.gamma)
                if spike_drop_rate > 0:
                    # As one module: names of parameters do not depend on dropout.
                    scale = layer.OTTTSequential(scale, layer.Dropout(spike_drop_rate))
                modules += [layer.WSConv2d(channels, width, 3, padding=1), neuron(), scale]
                channels = width
            stages[f"layer{i + 1}"] = layer.OTTTSequential(*modules)
        super().__init__(
            stages,
            [
                {"num_chs": widths[-1], "reduction": 2**i, "module": f"layer{i + 1}"}
                for i, widths in enumerate(cfg.stages)
            ],
            "layer1.0",
            num_classes=num_classes,
            in_chans=in_chans,
            global_pool=global_pool,
            drop_rate=drop_rate,
            readout=readout,
            init_fc=partial(init_linear, std=cfg.fc_std),
        )
        init_convs(self)
        if cfg.feedback:
            first, last = cfg.stages[0][0], cfg.stages[-1][-1]
            synapse = layer.Conv2d(last, first, 3, padding=1, bias=False)
            nn.init.zeros_(synapse.weight)
            source = self.get_submodule(self._stage_names[-1])
            self.feedback = layer.Feedback(synapse).connect(
                source, target=self.get_submodule("layer1.1")
            )

    def _check_input(self, x: Tensor) -> None:
        super()._check_input(x)
        least = 2 ** (len(self._stage_names) - 1)
        if min(x.shape[-2:]) < least:
            raise InputError(
                f"frames of {x.shape[-2]} x {x.shape[-1]} pixels: the pools of this VGG leave "
                f"nothing of a side below {least}; give larger frames"
            )

    def adapt_to(self, state: MutableMapping[str, Tensor], prefix: str = "") -> None:
        """Make the model and a state fit where they may differ.

        The feedback gets a bias where the state has one, as the authors' VGG-F has. What was saved
        when each dropout behind a neuron had a number of its own gets today's names.

        Args:
            state: Changed in place.
            prefix: What the names in it begin with.
        """
        bias = state.get(f"{prefix}feedback.synapse.bias")
        if bias is not None and self.feedback is not None:
            synapse: Any = self.feedback.synapse
            if synapse.bias is None:
                synapse.bias = nn.Parameter(torch.zeros_like(synapse.weight[:, 0, 0, 0]))
        for stage in self._stage_names:
            chain: Any = self.get_submodule(stage)
            convs = [i for i, m in enumerate(chain) if isinstance(m, layer.WSConv2d)]
            # One dropout stood before the second convolution, two before the third.
            now = {i + n: i for n, i in enumerate(convs)}
            old = now.keys() - set(convs)
            if not any(f"{prefix}{stage}.{number}.weight" in state for number in old):
                continue
            for number, i in now.items():
                for name in ("weight", "gain", "bias"):
                    key = f"{prefix}{stage}.{number}.{name}"
                    if key in state:
                        state[f"{prefix}{stage}.{i}.{name}"] = state.pop(key)

    def _load_from_state_dict(
        self, state_dict: MutableMapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        self.adapt_to(state_dict, prefix)  # PyTorch asks a module before its parts
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def prune_intermediate_layers(self, *args: Any, **kwargs: Any) -> list[int]:
        """Remove the stages behind the last wanted feature map, the classifier and the feedback."""
        stages = len(self._stage_names)
        wanted = super().prune_intermediate_layers(*args, **kwargs)
        if self.feedback is not None and len(self._stage_names) < stages:
            self.feedback.disconnect()  # its source is gone
            self.feedback = None
        return wanted


_VARIANTS = {
    "ottt_vgg11_ws": VGGCfg(((64, 128), (256, 256), (512, 512), (512, 512))),
    "ottt_vgg11f_ws": VGGCfg(((64, 128), (256, 256), (512, 512), (512, 512)), feedback=True),
    "ottt_vgg5_ws": VGGCfg(((48,), (96,), (128, 128)), fc_std=0.1),
    "ottt_vgg5f_ws": VGGCfg(((48,), (96,), (128, 128)), fc_std=0.1, feedback=True),
    "test_ottt_vgg": VGGCfg(((8,), (12,), (16,)), fc_std=0.1),
    "test_ottt_vggf": VGGCfg(((8,), (12,), (16,)), fc_std=0.1, feedback=True),
}


def _cfg(pool: int) -> dict[str, Any]:
    return timm_cfg(
        "layer1.0",
        input_size=(3, 32, 32),
        pool_size=(pool, pool),
        num_classes=10,
        mean=(0.4914, 0.4822, 0.4465),  # CIFAR-10
        std=(0.2470, 0.2435, 0.2616),
        crop_pct=1.0,
    )


default_cfgs = generate_default_cfgs(
    {
        "ottt_vgg11_ws.untrained": _cfg(4),
        "ottt_vgg11f_ws.untrained": _cfg(4),
        "ottt_vgg5_ws.untrained": _cfg(8),
        "ottt_vgg5f_ws.untrained": _cfg(8),
        "test_ottt_vgg.untrained": _cfg(8),
        "test_ottt_vggf.untrained": _cfg(8),
        **zoo_cfgs("layer1.0", _VARIANTS),
    }
)


@register_model
def ottt_vgg11_ws(pretrained: bool = False, **kwargs: Any) -> VGG:
    """Build the paper's VGG (9.2M parameters with 10 classes)."""
    return create(VGG, _VARIANTS["ottt_vgg11_ws"], "ottt_vgg11_ws", pretrained, **kwargs)


@register_model
def ottt_vgg11f_ws(pretrained: bool = False, **kwargs: Any) -> VGG:
    """Build the paper's VGG-F, with feedback (9.5M parameters with 10 classes)."""
    return create(VGG, _VARIANTS["ottt_vgg11f_ws"], "ottt_vgg11f_ws", pretrained, **kwargs)


@register_model
def ottt_vgg5_ws(pretrained: bool = False, **kwargs: Any) -> VGG:
    """Build a VGG for laptops and small sensors (0.3M parameters)."""
    return create(VGG, _VARIANTS["ottt_vgg5_ws"], "ottt_vgg5_ws", pretrained, **kwargs)


@register_model
def ottt_vgg5f_ws(pretrained: bool = False, **kwargs: Any) -> VGG:
    """Build the VGG for laptops and small sensors with feedback (0.36M parameters)."""
    return create(VGG, _VARIANTS["ottt_vgg5f_ws"], "ottt_vgg5f_ws", pretrained, **kwargs)


@register_model
def test_ottt_vgg(pretrained: bool = False, **kwargs: Any) -> VGG:
    """Build a tiny VGG for tests."""
    return create(VGG, _VARIANTS["test_ottt_vgg"], "test_ottt_vgg", pretrained, **kwargs)


@register_model
def test_ottt_vggf(pretrained: bool = False, **kwargs: Any) -> VGG:
    """Build a tiny VGG-F for tests."""
    return create(VGG, _VARIANTS["test_ottt_vggf"], "test_ottt_vggf", pretrained, **kwargs)
