"""Networks of liquid time-constant neurons: a recurrent one for sequences, one for frames."""

from dataclasses import dataclass
from functools import partial
from typing import Any

from spikingjelly.activation_based import functional
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from sj_ottt import layer
from sj_ottt.errors import InputError
from sj_ottt.layer import Pair
from sj_ottt.models.classifier import SpikingClassifier, create, init_linear, timm_cfg, zoo_cfgs
from sj_ottt.neuron import LeakyReadout, LTCConvNode, LTCNode, LTCRecurrent


@dataclass(frozen=True)
class LTCRNNCfg:
    """A variant: neurons of the recurrent layers.

    Attributes:
        widths: Neurons of each layer.
    """

    widths: tuple[int, ...]

    @property
    def n_features(self) -> int:
        """Number of feature maps; there is none."""
        return 0


class LTCRNN(nn.Module):
    """Recurrent LTC layers, a linear classifier, a leaky integrator: [N, F] → [N, classes] a step.

    The prediction is the output of the last step. Trained by FPTT or BPTT.

    Args:
        cfg: The variant.
        num_classes: Size of the output; 0 leaves the classifier out.
        in_chans: F, numbers per time step.
        drop_rate: Dropout before the classifier, one mask per sequence.
        readout: For the interface of the other models; without traces "exact" and "traced" agree,
            and "membrane" is refused, since the model has a leaky readout of its own.

    Raises:
        InputError: If `readout` is "membrane" or unknown.
    """

    head_parts = ("fc", "integrator")
    prediction = "last"
    fc: nn.Module
    integrator: nn.Module

    def __init__(
        self,
        cfg: LTCRNNCfg,
        num_classes: int = 10,
        in_chans: int = 1,
        drop_rate: float = 0.0,
        readout: str = "traced",
    ):
        super().__init__()
        _check_readout(readout)
        self.in_chans = in_chans
        self.num_features = self.head_hidden_size = cfg.widths[-1]
        sizes = zip((in_chans, *cfg.widths[:-1]), cfg.widths, strict=True)
        self.layers = nn.Sequential(*(LTCRecurrent(*size) for size in sizes))
        self.head_drop = layer.Dropout(drop_rate) if drop_rate > 0 else nn.Identity()
        self.reset_classifier(num_classes)

    def get_classifier(self) -> nn.Module:
        """Return the final linear layer."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier and its integrator by fresh ones; there is nothing to pool."""
        self.num_classes = num_classes
        self.fc, self.integrator = nn.Identity(), nn.Identity()
        if num_classes > 0:
            body, mode = self.get_parameter("layers.0.synapse.weight"), self._mode()
            self.fc = layer.Linear(self.num_features, num_classes, step_mode=mode).to(body)
            self.integrator = LeakyReadout(num_classes, step_mode=mode).to(body)
        self.train(self.training)

    def _mode(self) -> str:
        return str(self.layers[0].step_mode)

    def forward_features(self, x: Tensor) -> Tensor:
        """Run the recurrent layers, [N, F] → the spikes of the last one, [N, num_features].

        Raises:
            InputError: If the input's shape does not fit.
        """
        dims = 2 if self._mode() == "s" else 3
        if x.dim() != dims or x.shape[-1] != self.in_chans:
            raise InputError(
                f"input of shape {list(x.shape)}: the model takes [N, {self.in_chans}], one time "
                f'step, in step_mode="s" and [T, N, {self.in_chans}] in "m" (of images, '
                "encoding=rows, pixels or permuted makes such steps)"
            )
        return self.layers(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Classify spikes [N, num_features] → [N, classes]; `pre_logits` stops before that."""
        x = self.head_drop(x)
        return x if pre_logits else self.integrator(self.fc(x))

    def forward(self, x: Tensor) -> Tensor:
        """Do one time step (step mode "s") or all of them ("m")."""
        return self.forward_head(self.forward_features(x))

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Group parameters by depth, for timm's layer-wise learning rate decay."""
        return {"stem": r"^stem", "blocks": r"^layers\.(\d+)"}


@dataclass(frozen=True)
class LTCCNNCfg:
    """A variant: its convolutions, and the grid that the fully connected layer sees.

    Attributes:
        convs: Of each stage the output channels, the kernel size and whether 2×2 maximum pooling
            follows; the last channels are also the neurons of the fully connected layer.
        grid: Height and width that the last feature map is pooled to; that of the variant's own
            input size, which is then left as it is.
        b0: Lowest threshold of the convolutional neurons.
        dense: Number of fully connected layers before the readout.
    """

    convs: tuple[tuple[int, int, bool], ...]
    grid: int
    b0: float = 0.1
    dense: int = 1

    @property
    def n_features(self) -> int:
        """Number of feature maps."""
        return len(self.convs)


class LTCCNN(SpikingClassifier):
    """[convolution → BN → pool → LTC] in stages, dense LTC layers, linear readout, integrator.

    [N, C, H, W] → [N, classes] a step; the prediction is the output of the last step. Batch norm
    takes the statistics of one time step. Trained by FPTT or BPTT.

    Args:
        cfg: The variant.
        num_classes: Size of the output; 0 leaves the classifier out.
        in_chans: Number of input channels; 2 for event frames.
        global_pool: "avg", for the dense layers behind pooling to the variant's grid, or "" for the
            unpooled feature map.
        drop_rate: Dropout before the classifier, one mask per sequence.
        readout: For the interface of the other models; without traces "exact" and "traced" agree,
            and "membrane" is refused, since the model has a leaky readout of its own.

    Raises:
        InputError: If `readout` is "membrane" or unknown.
    """

    head_parts = ("dense", "fc", "integrator")
    prediction = "last"
    dense: nn.Module
    integrator: nn.Module

    def __init__(
        self,
        cfg: LTCCNNCfg,
        num_classes: int = 10,
        in_chans: int = 1,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        readout: str = "traced",
    ):
        _check_readout(readout)
        stages: dict[str, nn.Module] = {}
        info, channels, reduction = [], in_chans, 1
        for i, (width, kernel, pooled) in enumerate(cfg.convs, start=1):
            modules = [
                layer.Conv2d(channels, width, kernel, padding=kernel // 2, bias=False),
                layer.BatchNorm2d(width),
            ]
            if pooled:
                modules.append(layer.MaxPool2d(2))
                reduction *= 2
            modules.append(LTCConvNode(width, kernel, b0=cfg.b0))
            stages[f"layer{i}"] = nn.Sequential(*modules)
            info.append({"num_chs": width, "reduction": reduction, "module": f"layer{i}"})
            channels = width
        self._cfg = cfg
        super().__init__(
            stages,
            info,
            "layer1.0",
            num_classes=num_classes,
            in_chans=in_chans,
            global_pool=global_pool,
            drop_rate=drop_rate,
            readout=readout,
            init_fc=partial(init_linear, std=channels**-0.5),
        )

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace classifier and integrator by fresh ones; the dense layers go with the pooling.

        Raises:
            InputError: As `SpikingClassifier.reset_classifier`.
        """
        super().reset_classifier(num_classes, global_pool)
        body, mode = self.get_parameter(f"{self.first_conv}.weight"), self._mode()
        if isinstance(self.global_pool, nn.Identity):
            self.dense = nn.Identity()
        else:
            grid, width = self._cfg.grid, self.num_features
            self.global_pool = layer.AdaptiveAvgPool2d(grid, step_mode=mode)
            # Not there yet while the base class is made; the identity after an unpooled head.
            if not isinstance(getattr(self, "dense", None), nn.Sequential):
                sizes = (width * grid**2, *[width] * (self._cfg.dense - 1))
                dense = [m for n in sizes for m in (layer.Linear(n, width), LTCNode(width))]
                self.dense = nn.Sequential(*dense).to(body)
                functional.set_step_mode(self.dense, mode)
        self.integrator = nn.Identity()
        if num_classes:
            self.integrator = LeakyReadout(num_classes, step_mode=mode).to(body)
        self.train(self.training)

    def forward_head(self, x: Tensor | Pair, pre_logits: bool = False) -> Tensor | Pair:
        """Pool, run the dense layers, and classify; `pre_logits` stops before the classifier."""
        x = self.head_drop(self.dense(self.flatten(self.global_pool(x))))
        return x if pre_logits else self.integrator(self.fc(x))

    def forward(self, x: Tensor) -> Tensor | Pair:
        """Do one time step (step mode "s") or all of them, one by one ("m")."""
        return self._one_by_one(x) if self._mode() == "m" else super().forward(x)


def _check_readout(readout: str) -> None:
    """Refuse a second integrator behind the model's own.

    Raises:
        InputError: If the readout is none of those that the model has.
    """
    if readout not in ("traced", "exact"):
        raise InputError(
            f'readout="{readout}": a network of liquid neurons has a leaky readout of its own: '
            'leave readout out, or use "traced"'
        )


_RNN = {
    "ltc_rnn": LTCRNNCfg((256,)),
    "test_ltc_rnn": LTCRNNCfg((12, 8)),
}
_CNN = {
    "ltc_cnn": LTCCNNCfg(
        ((32, 3, False), (128, 3, True), (256, 3, True), (512, 3, True)), grid=3, dense=2
    ),
    "ltc_cnn_dvs": LTCCNNCfg(
        (
            *((64, 7, True), (128, 7, True), (128, 3, True)),
            *((256, 3, True), (256, 3, True), (512, 3, True)),
        ),
        grid=2,
        b0=0.5,
    ),
    "ltc_cnn_small": LTCCNNCfg(((16, 3, True), (32, 3, True), (64, 3, True)), grid=3),
    "test_ltc_cnn": LTCCNNCfg(((6, 3, False), (8, 3, True), (10, 3, True)), grid=2),
}


def _frames(size: int, channels: int, classes: int, pool: int) -> dict[str, Any]:
    shape = {"input_size": (channels, size, size), "pool_size": (pool, pool)}
    return timm_cfg("layer1.0", **shape, num_classes=classes, mean=(0.0,), std=(1.0,), crop_pct=1.0)


default_cfgs = generate_default_cfgs(
    {
        **{
            # timm knows images only: one channel, one pixel.
            f"{name}.untrained": timm_cfg("layers.0.synapse", input_size=(1, 1, 1), num_classes=10)
            for name in _RNN
        },
        "ltc_cnn.untrained": _frames(28, 1, 10, 3),
        "ltc_cnn_small.untrained": _frames(28, 1, 10, 3),
        "ltc_cnn_dvs.untrained": _frames(128, 2, 11, 2),
        "test_ltc_cnn.untrained": _frames(32, 1, 10, 8),
        **zoo_cfgs("layer1.0", _CNN),
    }
)


@register_model
def ltc_rnn(pretrained: bool = False, **kwargs: Any) -> LTCRNN:
    """Build a recurrent LTC network for sequences, 256 neurons (sequential digits)."""
    return create(LTCRNN, _RNN["ltc_rnn"], "ltc_rnn", pretrained, **kwargs)


@register_model
def ltc_cnn(pretrained: bool = False, **kwargs: Any) -> LTCCNN:
    """Build a convolutional LTC network for small images and frames (Fashion-MNIST)."""
    return create(LTCCNN, _CNN["ltc_cnn"], "ltc_cnn", pretrained, **kwargs)


@register_model
def ltc_cnn_dvs(pretrained: bool = False, **kwargs: Any) -> LTCCNN:
    """Build the convolutional LTC network for DVS-Gesture (14.1M parameters)."""
    return create(LTCCNN, _CNN["ltc_cnn_dvs"], "ltc_cnn_dvs", pretrained, **kwargs)


@register_model
def ltc_cnn_small(pretrained: bool = False, **kwargs: Any) -> LTCCNN:
    """Build a convolutional LTC network that two CPU cores can train (0.17M parameters)."""
    return create(LTCCNN, _CNN["ltc_cnn_small"], "ltc_cnn_small", pretrained, **kwargs)


@register_model
def test_ltc_rnn(pretrained: bool = False, **kwargs: Any) -> LTCRNN:
    """Build a tiny recurrent LTC network for tests."""
    return create(LTCRNN, _RNN["test_ltc_rnn"], "test_ltc_rnn", pretrained, **kwargs)


@register_model
def test_ltc_cnn(pretrained: bool = False, **kwargs: Any) -> LTCCNN:
    """Build a tiny convolutional LTC network for tests."""
    return create(LTCCNN, _CNN["test_ltc_cnn"], "test_ltc_cnn", pretrained, **kwargs)
