"""What the networks share: a chain of named stages, a classifier, and timm's model interface."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import torch
from timm.models import build_model_with_cfg, resolve_pretrained_cfg
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from sj_ottt import layer, zoo
from sj_ottt.errors import InputError, suggest
from sj_ottt.layer import Pair
from sj_ottt.layer.sequential import one_by_one, run_all
from sj_ottt.learning.rules import rule_of, set_rule
from sj_ottt.neuron import OTTTLIFNode
from sj_ottt.neuron.readout import LeakyIntegrator

NeuronFactory = Callable[[], nn.Module]
"""Makes one neuron, for example `partial(OTTTLIFNode, tau=1.5)`."""

Network = TypeVar("Network", bound=nn.Module)

default_neuron: NeuronFactory = partial(OTTTLIFNode, trace_dtype="packed")
"""The paper's neuron (tau=2), its trace in one byte: exact up to T = 8, to 2⁻⁷ beyond."""

_SOURCES = ("url", "hf_hub_id", "state_dict", "source")  # of weights in timm, besides a file

READOUTS = ("traced", "exact", "membrane")


class SpikingClassifier(nn.Module):
    """A network that does one time step a call: stages, global pool, dropout, linear classifier.

    In step mode "s", [N, C, H, W] → [N, classes]. In evaluation and step mode "m"
    (`spikingjelly.activation_based.functional.set_step_mode`), [T, N, C, H, W] → [T, N, classes].

    Args:
        stages: Name → module; run in this order, and visible under their names.
        feature_info: timm's description of the feature maps; `module` names the stage.
        first_conv: Name of the convolution that sees the input.
        num_classes: Size of the output; 0 leaves the classifier out.
        in_chans: Number of input channels.
        global_pool: "avg", or "" for the unpooled feature map (needs num_classes=0).
        drop_rate: Dropout before the classifier, one mask per sequence.
        readout: "traced", the authors' choice: the classifier's weight gradient takes the trace of
            its input; "exact": it takes the spike, the exact gradient of a classifier that has no
            membrane. The same where its input is real-valued. "membrane": a leaky integrator
            (tau = 2) sums up the classifier's outputs, with the exact gradient for it, and the
            prediction is its value at the last step; see `neuron.MembraneReadout`.
        init_fc: Initialises the classifier in place.

    Attributes:
        integrator: The membrane of the readout; None without one.
        feedback: A connection from a later stage to an earlier one; None, unless a subclass lays
            one. With it, step mode "m" runs the time steps one by one.

    Raises:
        InputError: If `readout` or `global_pool` is unknown.
    """

    head_parts: tuple[str, ...] = ("fc",)  # those with weights
    global_pool: nn.Module
    flatten: nn.Module
    fc: nn.Module
    integrator: nn.Module | None
    feedback: layer.Feedback | None

    def __init__(
        self,
        stages: dict[str, nn.Module],
        feature_info: list[dict[str, Any]],
        first_conv: str,
        *,
        num_classes: int,
        in_chans: int,
        global_pool: str,
        drop_rate: float,
        readout: str,
        init_fc: Callable[[nn.Linear], None],
    ):
        super().__init__()
        if readout not in READOUTS:
            raise InputError(
                f'readout="{readout}" is unknown: use one of {", ".join(READOUTS)}'
                f"{suggest(readout, READOUTS)}"
            )
        self.readout = readout
        self.in_chans = in_chans
        self.first_conv = first_conv
        self.feature_info = feature_info
        self.num_features = self.head_hidden_size = feature_info[-1]["num_chs"]
        self.feedback = None
        self._init_fc = init_fc
        self._stage_names = tuple(stages)
        for name, stage in stages.items():
            self.add_module(name, stage)
        self.head_drop = layer.Dropout(drop_rate) if drop_rate > 0 else nn.Identity()
        self.reset_classifier(num_classes, global_pool)

    @property
    def prediction(self) -> str:
        """What of the outputs of all steps is the prediction."""
        return "sum" if self.integrator is None else "last"

    def get_classifier(self) -> nn.Module:
        """Return the final linear layer."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a fresh one, and the pooling where it is given.

        A classifier on a model whose pooling was removed brings average pooling back.

        Raises:
            InputError: If the pooling is unknown, or a classifier is left without one.
        """
        if global_pool is None:
            unpooled = isinstance(self.global_pool, nn.Identity)
            global_pool = "" if unpooled and num_classes == 0 else "avg"
        if global_pool not in ("avg", ""):
            raise InputError(f'global_pool="{global_pool}" is unknown: use "avg" or ""')
        if num_classes > 0 and not global_pool:
            raise InputError('global_pool="" gives a feature map, no logits: add num_classes=0')
        self.num_classes, mode = num_classes, self._mode()
        self.global_pool = self.flatten = nn.Identity()
        if global_pool:
            self.global_pool = layer.AdaptiveAvgPool2d(1, step_mode=mode)
            self.flatten = layer.Flatten(1, step_mode=mode)
        self.fc, self.integrator = nn.Identity(), None
        if num_classes > 0:
            if self.readout == "membrane":
                rule = rule_of(self)
                self.integrator = LeakyIntegrator(step_mode=mode)
                self.integrator.rule, self.integrator.variant = rule, rule.variant
            fc = layer.Linear(self.num_features, num_classes, step_mode=mode)
            self._init_fc(fc)
            # A head that replaces another one later joins the body where and as it is.
            body = self.get_parameter(f"{self.first_conv}.weight")
            self.fc = fc.to(body.device, body.dtype)
        self.train(self.training)

    def forward_features(self, x: Tensor) -> Tensor | Pair:
        """Run all stages, [N, C, H, W] → the last feature map [N, C', H', W'].

        In training it is [spike, trace] where it is spikes.

        Raises:
            InputError: If the input's shape does not fit.
        """
        self._check_input(x)
        return run_all(map(self.get_submodule, self._stage_names), x)

    def _mode(self) -> str:
        """Return the layers' step mode: "s", one time step a call, or "m", all of them."""
        return str(self.get_submodule(self.first_conv).step_mode)

    def _check_input(self, x: Tensor) -> None:
        mode = self._mode()
        if x.dim() != (4 if mode == "s" else 5) or x.shape[-3] != self.in_chans:
            raise InputError(
                f'input of shape {list(x.shape)}: the model is in step_mode="{mode}"; it takes '
                f'[N, {self.in_chans}, H, W], one time step, in "s" and '
                f'[T, N, {self.in_chans}, H, W] in "m" (spikingjelly\'s functional.set_step_mode)'
            )

    def forward_head(self, x: Tensor | Pair, pre_logits: bool = False) -> Tensor | Pair:
        """Pool and classify the last feature map: logits [N, classes].

        Args:
            x: What `forward_features` returns.
            pre_logits: Stop before the classifier, at the pooled features [N, num_features]; in
                training they are [spike, trace] where they are spikes.
        """
        x = self.head_drop(self.flatten(self.global_pool(x)))
        if pre_logits:
            return x
        if self.integrator is not None:
            return self.integrator(x, self.fc)
        if self.readout == "exact" and isinstance(x, Pair) and self.num_classes > 0:
            x = x.spike
        return self.fc(x)

    def forward(self, x: Tensor) -> Tensor | Pair:
        """Do one time step, [N, C, H, W] → [N, classes]; in step mode "m", all of them.

        Without a classifier, it returns the features; in training they are [spike, trace], as those
        of `forward_features`, so that what is built on them learns by the model's rule.
        """
        at_once = self.feedback is not None and self._mode() == "m"
        # In online training the neurons refuse all steps in one call, and say why.
        if at_once and (not self.training or rule_of(self).through_time):
            return self._one_by_one(x)
        return self.forward_head(self.forward_features(x))

    def _one_by_one(self, x_seq: Tensor) -> Tensor:
        """Run step mode "m" as time steps, each of which needs the one before."""
        self._check_input(x_seq)
        return one_by_one(self, x_seq)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor | Pair] | tuple[Tensor | Pair, list[Tensor | Pair]]:
        """Return the feature maps of one time step, as timm's method of this name.

        Args:
            x: [N, C, H, W].
            indices: Which entries of `feature_info`; an int takes the last n, None all.
            norm: Ignored; there is no final normalisation.
            stop_early: Leave out the stages behind the last wanted one.
            output_fmt: "NCHW" only.
            intermediates_only: Return the maps alone.

        Returns:
            The maps, or (last output, maps). A map [N, C', H', W'] is a current or spikes; in
            training, spikes come as [spike, trace], so that a decoder learns by the model's rule.

        Raises:
            InputError: If `output_fmt` is another one, or the input's shape does not fit.
        """
        if output_fmt != "NCHW":
            raise InputError(f'output_fmt="{output_fmt}" is not available: use "NCHW"')
        self._check_input(x)
        wanted, _ = feature_take_indices(len(self.feature_info), indices)
        modules = {self.feature_info[i]["module"] for i in wanted}
        maps: list[Tensor | Pair] = []
        for name in self._stage_names:
            x = self.get_submodule(name)(x)
            if name in modules:
                maps.append(x)
                if stop_early and len(maps) == len(modules):
                    break
        return maps if intermediates_only else (x, maps)

    def prune_intermediate_layers(
        self,
        indices: int | list[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Remove the stages behind the last wanted feature map, and the classifier.

        Args:
            indices: As in `forward_intermediates`.
            prune_norm: Ignored; there is no final normalisation.
            prune_head: Whether the classifier and the pooling go too.

        Returns:
            The wanted entries of `feature_info`.
        """
        wanted, last = feature_take_indices(len(self.feature_info), indices)
        end = self._stage_names.index(self.feature_info[last]["module"]) + 1
        for name in self._stage_names[end:]:
            delattr(self, name)
        self._stage_names = self._stage_names[:end]
        if prune_head:
            self.reset_classifier(0, "")
        return wanted

    def load_pretrained(self, path: str | Path, prefix: str = "") -> None:
        """Load a weight file; timm calls this for the weights of our zoo."""
        zoo.load_weights(self, path)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Group parameters by depth, for timm's layer-wise learning rate decay."""
        return {"stem": r"^stem", "blocks": r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Refuse: online training keeps one time step only, so there is no memory to save.

        Raises:
            InputError: If it is switched on.
        """
        if enable:
            raise InputError("gradient checkpointing is not available for online training")


def init_linear(fc: nn.Linear, std: float) -> None:
    """Initialise a classifier: weights N(0, std), bias 0."""
    nn.init.normal_(fc.weight, std=std) if std > 0 else nn.init.zeros_(fc.weight)
    nn.init.zeros_(fc.bias)


def init_convs(model: nn.Module) -> None:
    """Initialise all convolutions: Kaiming normal by fan-out with the ReLU gain, biases 0."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class Variant(Protocol):
    """What every network's configuration says: how many feature maps there are."""

    @property
    def n_features(self) -> int:
        """Number of feature maps."""


def create(
    model_cls: type[Network], cfg: Variant, variant: str, pretrained: bool, **kwargs: Any
) -> Network:
    """Build a registered variant through timm.

    Args:
        model_cls: The network's class.
        cfg: Its configuration.
        variant: Its registered name.
        pretrained: As in timm. Of weights of a zoo that say how their network is built, what is not
            given is as they say.
        **kwargs: As in timm, among them `device` and `dtype`; `rule` and, of NDOT, `rule_variant`,
            as in `sj_ottt.set_rule`.
    """
    overlay = kwargs.get("pretrained_cfg_overlay") or {}
    if overlay.get("file"):
        known = zoo.cfg_beside(overlay["file"])  # of its classes and its input
        kwargs["pretrained_cfg_overlay"] = {"custom_load": True, **known, **overlay}
    elif any(overlay.get(source) for source in _SOURCES):
        # In timm a file comes first, here that of the default weights.
        kwargs["pretrained_cfg_overlay"] = {"file": None, "custom_load": True, **overlay}
    if pretrained:
        given = (kwargs.get(name) for name in ("pretrained_cfg", "pretrained_cfg_overlay"))
        if file := resolve_pretrained_cfg(variant, *given).file:
            kwargs = {**zoo.options_beside(file), **kwargs}
    device, dtype = kwargs.pop("device", None), kwargs.pop("dtype", None)
    rule, rule_variant = kwargs.pop("rule", None), kwargs.pop("rule_variant", None)

    def build(**model_kwargs: Any) -> nn.Module:
        with torch.device(device) if device is not None else nullcontext():
            model = model_cls(cfg, **model_kwargs).to(dtype=dtype)
        if rule is None and rule_variant is None:
            return model
        return set_rule(model, rule or rule_of(model).name, rule_variant)

    indices = tuple(range(cfg.n_features))
    model = build_model_with_cfg(
        build,
        variant,
        pretrained,
        feature_cfg={"out_indices": indices, "feature_cls": "getter"},
        **kwargs,
    )
    return cast(Network, model)  # timm types it as any module


def timm_cfg(first_conv: str, **kwargs: Any) -> dict[str, Any]:
    """Return timm's pretrained configuration with the fields that our models share."""
    return {
        "first_conv": first_conv,
        "classifier": "fc",
        **kwargs,
    }


def zoo_cfgs(first_conv: str, variants: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return timm's configurations of the weights that the zoos have of some variants."""
    known = zoo.pretrained_cfgs(list(variants))
    return {name: timm_cfg(first_conv, **cfg) for name, cfg in known.items()}
