"""The sections of a training run's configuration.

The name of a field is the key of a recipe and, with dashes, the flag of ``sj-ottt train``. A new
option is a field of its section; what must hold between options of several sections is checked in
`config.TrainConfig`.
"""

import dataclasses

from sj_ottt.errors import InputError
from sj_ottt.run.options import (
    Section,
    box,
    choice,
    flag,
    frame_size,
    integer,
    name_list,
    not_negative,
    number,
    option,
    optional,
    positive,
    share,
    share_below_one,
    text,
    weight_source,
)


@dataclasses.dataclass(frozen=True)
class NetworkOptions(Section):
    """The network, where its weights start, and which of them stay."""

    title = "model"

    model: str = option("ottt_vgg5_ws", text, "model name, see `sj-ottt models`")
    pretrained: bool | str | None = option(
        None,
        weight_source,
        "start from the weights of the model zoo, those of TAG if given; or from those of a run's "
        "folder or a weight file, given by its path",
    )
    freeze: tuple[str, ...] | None = option(
        None, optional(name_list), "parts of the model that do not learn, such as stem,layer1"
    )
    pull_to: str | None = option(
        None,
        optional(text),
        "start from the best weights of this run's folder, and stay near them (FTRL-OTTT)",
    )
    pull: float = option(1e-3, not_negative, "strength of that pull")
    pull_norm: str = option("l2", choice("l2", "l1"), "its norm: l2 or l1")
    drop_rate: float = option(0.0, share_below_one, "dropout probability")
    spike_drop_rate: float = option(
        0.0,
        share_below_one,
        "dropout probability behind each neuron, of models that have it (the VGGs)",
    )

    def _check_together(self) -> None:
        if self.pull_to is not None and self.pretrained is not None:
            raise InputError("pull_to and pretrained both say where to start: leave one out")


@dataclasses.dataclass(frozen=True)
class DatasetOptions(Section):
    """The samples: which data set, and which part of it."""

    title = "data"

    data: str = option(
        "ndigits",
        text,
        "folder of recordings, npz file of images, ndigits, or SET:DIR with SET one of nmnist, "
        "dvs128gesture, cifar10dvs, ncaltech101, cifar10, cifar100, mnist, fashionmnist, "
        "imagenet, folder",
    )
    train_samples: int | None = option(
        None,
        optional(integer(1)),
        "train on so many samples only, the same number of each class; all if not given",
    )
    val_fraction: float = option(
        0.1,
        share_below_one,
        "share of the training recordings kept aside to choose the best epoch",
    )


@dataclasses.dataclass(frozen=True)
class FrameOptions(Section):
    """How samples become network input.

    Part of a trained model, for it must see later samples as those that it learned on.
    """

    title = "frames"

    steps: int = option(6, integer(1), "time steps (frames) per recording")
    size: tuple[int, int] | None = option(
        None,
        optional(frame_size),
        "height and width of the frames in pixels, the sensor's if not given",
    )
    split_by: str = option(
        "count", choice("count", "duration"), "frames of equal event count or equal duration"
    )
    frames: str = option(
        "counts",
        choice("counts", "surface"),
        "what frames show: counts of events, or a time surface (how long ago each pixel fired)",
    )
    tau_us: float | None = option(
        None,
        optional(positive),
        "time constant of the surface in µs, half a frame if not given",
    )
    crop: tuple[int, ...] | None = option(
        None,
        optional(box),
        "part of the sensor that is used: height and width of its middle, or top, left, height "
        "and width; all of it if not given",
    )
    hot_pixels: float | None = option(
        None,
        optional(number(lambda v: v >= 1, "a finite number from 1 on")),
        "drop pixels that fire this many times as often as those around them, such as 10; none if "
        "not given",
    )
    normalize: bool = option(
        True, flag, "scale the event counts of each recording, standardize images"
    )
    encoding: str = option(
        "direct",
        choice("direct", "poisson", "rows", "pixels", "permuted"),
        "how images become sequences: direct (shown at each step), poisson, rows, pixels or "
        "permuted",
    )

    def _check_together(self) -> None:
        if self.tau_us is not None and self.frames != "surface":
            raise InputError('tau_us goes with frames="surface" only: leave one out')

    @property
    def steps_from_image(self) -> bool:
        """Whether the images' size decides the number of time steps."""
        return self.encoding in ("rows", "pixels", "permuted")


@dataclasses.dataclass(frozen=True)
class AugmentationOptions(Section):
    """Random changes of the training samples."""

    title = "augmentation"

    shift: int = option(0, integer(0), "random shift of the training frames, at most, in pixels")
    flip: float = option(0.0, share, "probability of flipping training frames left to right")
    rotate: float = option(
        0.0,
        number(lambda v: 0 <= v <= 180, "a number from 0 to 180"),
        "random rotation of the training frames, at most, in degrees",
    )
    drop_events: float = option(
        0.0,
        share_below_one,
        "share of the events of a training recording that is dropped, at most",
    )
    time_jitter: float = option(
        0.0, share, "random move of each training event in time, at most, in frames (up to 1)"
    )
    cutout: int = option(0, integer(0), "blank a random square of the training frames, in pixels")
    cutmix: float = option(
        0.0, share, "probability that a training batch has boxes of its recordings exchanged"
    )


# The rules that a neuron follows; FPTT is one of whole models.
RULES = ("ottt", "sltt", "ndot", "bptt")
RULE_VARIANTS = ("paper", "code")


@dataclasses.dataclass(frozen=True)
class LearningOptions(Section):
    """How gradients are made, and when the weights follow them."""

    title = "learning rule"

    rule: str = option(
        "ottt",
        choice(*RULES, "fptt"),
        f"learning rule: {', '.join(RULES)} (bptt keeps all time steps in memory), or fptt "
        "(updates within a sequence, by the model's own gradient)",
    )
    rule_variant: str = option(
        "paper", choice(*RULE_VARIANTS), "of ndot: as in its paper, or as in its authors' code"
    )
    readout: str = option(
        "traced", choice("traced", "exact"), "gradient of the classifier: by trace or by spike"
    )
    update: str = option(
        "accumulate",
        choice("accumulate", "online"),
        "update the weights once a sequence (accumulate) or at each time step (online)",
    )
    backward_steps: int | None = option(
        None,
        optional(integer(1)),
        "time steps with a backward pass, drawn per batch; all if not given",
    )

    def _check_together(self) -> None:
        reasons = {
            "bptt": "which has one backward pass and one update a sequence",
            "fptt": "which has one backward pass and one update for each part of a sequence",
        }
        for name, default in (("update", "accumulate"), ("backward_steps", None)):
            if self.rule in reasons and getattr(self, name) != default:
                raise InputError(
                    f'{name}={getattr(self, name)} does not go with rule="{self.rule}", '
                    f"{reasons[self.rule]}: leave it out"
                )
        if self.rule_variant != "paper" and self.rule != "ndot":
            raise InputError(
                f'rule_variant={self.rule_variant} does not go with rule="{self.rule}": leave it '
                "out, or use rule=ndot"
            )


@dataclasses.dataclass(frozen=True)
class FPTTOptions(Section):
    """What goes with rule="fptt" only, see `sj_ottt.learning.FPTT`."""

    title = "fptt"

    parts: int | None = option(
        None, optional(integer(1)), "of fptt: parts of a sequence, one a time step if not given"
    )
    fptt_alpha: float = option(0.1, positive, "of fptt: pull to the averages")
    fptt_beta: float = option(0.5, share, "of fptt: pace of the averages")
    fptt_rho: float = option(
        0.0,
        share,
        "of fptt: what is left out of the correction of that pull",
    )
    fptt_clip: float = option(
        1.0,
        not_negative,
        "of fptt: largest norm of the gradients, 0: no limit",
    )
    fptt_form: str = option(
        "lambda",
        choice("lambda", "grad"),
        "of fptt: lambda, or grad (a second pass for each update)",
    )

    def _check_together(self) -> None:
        if self.fptt_form == "grad" and (self.fptt_beta, self.fptt_rho) != (0.5, 0.0):
            raise InputError("fptt_form=grad has no fptt_beta and fptt_rho: leave them out")


@dataclasses.dataclass(frozen=True)
class OptimisationOptions(Section):
    """Loss, optimizer and schedule."""

    title = "optimisation"

    epochs: int = option(10, integer(1), "passes over the training recordings")
    early_stop: int | None = option(
        None,
        optional(integer(1)),
        "stop after so many epochs without a better validation; never if not given",
    )
    head_epochs: int = option(
        0, integer(0), "epochs at the start in which the classifier alone learns"
    )
    batch_size: int = option(32, integer(1), "recordings per batch")
    optimizer: str = option(
        "sgd",
        choice("sgd", "adam", "adamw", "adamax"),
        "sgd (momentum 0.9), adam, adamw or adamax",
    )
    lr: float = option(0.05, positive, "highest learning rate")
    schedule: str = option(
        "cosine", choice("cosine", "constant"), "learning rate: cosine (to 0) or constant"
    )
    layer_decay: float = option(
        1.0,
        number(lambda v: 0 < v <= 1, "a number above 0, up to 1"),
        "factor on the learning rate for each layer further from the classifier",
    )
    weight_decay: float = option(0.0, not_negative, "weight decay")
    mse_weight: float = option(
        0.05,
        share,
        "share of the mean squared error in the loss, the rest is cross entropy",
    )
    class_weights: bool = option(
        False, flag, "weigh the loss of each class by the inverse of its frequency"
    )
    amp: str = option(
        "off", choice("off", "bfloat16", "float16"), "mixed precision: off, bfloat16 or float16"
    )

    def _check_together(self) -> None:
        if self.head_epochs > self.epochs:
            raise InputError(
                f"head_epochs must be at most epochs={self.epochs}, not {self.head_epochs}"
            )


@dataclasses.dataclass(frozen=True)
class RunOptions(Section):
    """Where a run takes place."""

    title = "run"

    out: str = option("runs/train", text, "folder of the run: checkpoints, result, pictures")
    seed: int = option(0, integer(0), "seed of the weights, the split, the order, the dropout")
    workers: int = option(0, integer(0), "processes that load data, 0: the main one")
    device: str = option("auto", text, "cpu, cuda, cuda:1, ...; auto: a GPU if there is one")
