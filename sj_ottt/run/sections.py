"""The sections of a training run's configuration.

The name of a field is the key of a recipe and, with dashes, the flag of ``sj-ottt train``. A new
option is a field of its section; what must hold between options of several sections is checked in
`config.TrainConfig`.
"""

import dataclasses

from sj_ottt.data import ENCODINGS, Augmentation, Framing, Preprocessing
from sj_ottt.data.encodings import STEPS_FROM_IMAGE
from sj_ottt.data.frames.frames import SPLITS_BY
from sj_ottt.data.frames.framing import CONTENTS
from sj_ottt.data.recordings.source import ReadOptions
from sj_ottt.data.sets.images import IMAGE_SETS
from sj_ottt.data.sets.open import EMBEDDED
from sj_ottt.data.sets.published import EVENT_SETS
from sj_ottt.errors import InputError
from sj_ottt.learning.rules import RULES, VARIANTS
from sj_ottt.neuron.lif import BACKENDS
from sj_ottt.run.options import (
    Section,
    box,
    choice,
    chunk_size,
    flag,
    frame_size,
    integer,
    name_list,
    name_or_number,
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
class DatasetOptions(Section):
    """The samples: which data set, and which part of it."""

    title = "data"

    data: str = option(
        "ndigits",
        text,
        f"folder of recordings, npz file of images, {', '.join(EMBEDDED)}, or SET:DIR with SET one "
        f"of {', '.join((*EVENT_SETS, *IMAGE_SETS))}",
    )
    train_samples: int | None = option(
        None,
        optional(integer(1)),
        "train on so many samples only, the same number of each class; all if not given",
    )
    val_fraction: float = option(
        0.1,
        share_below_one,
        "share of the training samples kept aside to choose the best epoch",
    )
    sensor_size: tuple[int, int] | None = option(
        None,
        optional(frame_size),
        "height and width of the recordings' sensor in pixels; what the files state if not given",
    )
    strict: bool = option(
        False, flag, "refuse what is otherwise repaired, or assumed, of a recording with a warning"
    )
    camera: str | None = option(
        None,
        optional(name_or_number),
        "which of several cameras in a recording, by its name or its number from 0 on",
    )
    time_unit: str | None = option(
        None,
        optional(choice("us", "ns", "ms", "s")),
        "of times in text and arrays: us, ns, ms or s; told by the file if not given",
    )

    @property
    def reading(self) -> ReadOptions:
        """How recordings are read."""
        return ReadOptions(self.strict, self.sensor_size, self.camera, self.time_unit)


@dataclasses.dataclass(frozen=True)
class NetworkOptions(Section):
    """The network, where its weights start, and which of them stay."""

    title = "model"

    model: str = option("ottt_vgg5_ws", text, "model name, see `sj-ottt models`")
    pretrained: bool | str | None = option(
        None,
        weight_source,
        "start from trained weights: those of the model zoo (its default ones, or those of TAG), "
        "or those of a run's folder or a weight file, given by its path in the place of TAG",
    )
    calibrate: bool = option(
        False,
        flag,
        "before a new model trains, set its gains by a batch of the data, so that each layer fires",
    )
    freeze: tuple[str, ...] | None = option(
        None, optional(name_list), "parts of the model that do not learn, such as stem,layer1"
    )
    pull_to: str | None = option(
        None,
        optional(text),
        "start from the best weights of this run's folder, and stay near them (FTRL-OTTT)",
    )
    pull: float = option(1e-3, not_negative, "strength of the pull that --pull-to exerts")
    pull_norm: str = option("l2", choice("l2", "l1"), "norm of that pull: l2 or l1")
    drop_rate: float = option(0.0, share_below_one, "dropout probability")
    spike_drop_rate: float = option(
        0.0,
        share_below_one,
        "dropout probability behind each neuron, of the VGG models only",
    )

    def _check_together(self) -> None:
        if self.pull_to is not None and self.pretrained is not None:
            raise InputError("pull_to and pretrained both say where to start: leave one out")
        for name in ("pretrained", "pull_to"):
            if self.calibrate and getattr(self, name) is not None:
                raise InputError(
                    f"calibrate sets the gains of a new model, and {name} gives it trained ones: "
                    "leave one out"
                )


@dataclasses.dataclass(frozen=True)
class FrameOptions(Section):
    """How samples become network input.

    Part of a trained model, for it must see later samples as those that it learned on.
    """

    title = "frames"

    steps: int = option(6, integer(1, 1_000_000), "time steps (frames) per recording")
    size: tuple[int, int] | None = option(
        None,
        optional(frame_size),
        "height and width of the frames in pixels, the sensor's if not given",
    )
    split_by: str = option(
        Framing.split_by, choice(*SPLITS_BY), "frames of equal event count or equal duration"
    )
    frames: str = option(
        Framing.frames,
        choice(*CONTENTS),
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
        "drop pixels that fire this many times as often as those around them, such as 10; keep all "
        "if not given",
    )
    normalize: bool = option(
        Preprocessing.normalize,
        flag,
        "scale each frame of a recording to the same strength, standardize images",
    )
    encoding: str = option(
        Preprocessing.encoding,
        choice(*ENCODINGS),
        "how images become sequences: direct (shown at each step), poisson (random spikes), rows "
        "or pixels (one a step), permuted (pixels in a fixed random order), or saccade (events "
        "that a moving camera sees, for networks that are to see recordings)",
    )

    def _check_together(self) -> None:
        if self.tau_us is not None and self.frames != "surface":
            raise InputError('tau_us goes with frames="surface" only: leave one out')

    @property
    def steps_from_image(self) -> bool:
        """Whether the images' size decides the number of time steps."""
        return self.encoding in STEPS_FROM_IMAGE


_VARIANTS = tuple(dict.fromkeys(variant for each in VARIANTS.values() for variant in each))
_RULES_WITH_VARIANTS = tuple(name for name, variants in VARIANTS.items() if variants)
_NOTE = " (which keeps all time steps in memory)"


@dataclasses.dataclass(frozen=True)
class LearningOptions(Section):
    """How gradients are made, and when the weights follow them."""

    title = "learning rule"

    rule: str = option(
        "ottt",
        choice(*RULES, "fptt"),
        "learning rule: "
        + ", ".join(name + _NOTE * rule.through_time for name, rule in RULES.items())
        + " or fptt (updates within a sequence, by the model's own gradient)",
    )
    rule_variant: str = option(
        "paper",
        choice(*_VARIANTS),
        f"of {', '.join(_RULES_WITH_VARIANTS)}: as in its paper, or as in its authors' code",
    )
    readout: str = option(
        "traced",
        choice("traced", "exact", "membrane"),
        "of the classifier: gradient by traces (traced) or by spikes (exact); or a leaky "
        "integrator whose last value is the prediction (membrane)",
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
        updates_for = None
        if self.rule == "fptt":
            updates_for = "each part of a sequence"
        elif RULES[self.rule].through_time:
            updates_for = "a sequence"
        for name, default in (("update", "accumulate"), ("backward_steps", None)):
            if updates_for is not None and getattr(self, name) != default:
                raise InputError(
                    f'{name}={getattr(self, name)} does not go with rule="{self.rule}", which has '
                    f"one backward pass and one update for {updates_for}: leave it out"
                )
        if self.rule_variant != "paper" and self.rule not in _RULES_WITH_VARIANTS:
            raise InputError(
                f'rule_variant={self.rule_variant} does not go with rule="{self.rule}": leave it '
                f"out, or use rule={' or '.join(_RULES_WITH_VARIANTS)}"
            )


@dataclasses.dataclass(frozen=True)
class OptimisationOptions(Section):
    """Loss, optimizer and schedule."""

    title = "optimisation"

    epochs: int = option(10, integer(1), "passes over the training recordings")
    batch_size: int = option(32, integer(1), "recordings per batch")
    lr: float = option(0.05, positive, "highest learning rate")
    optimizer: str = option(
        "sgd",
        choice("sgd", "adam", "adamw", "adamax"),
        "sgd (momentum 0.9), adam, adamw or adamax",
    )
    schedule: str = option(
        "cosine", choice("cosine", "constant"), "learning rate: cosine (to 0) or constant"
    )
    weight_decay: float = option(0.0, not_negative, "weight decay")
    early_stop: int | None = option(
        None,
        optional(integer(1)),
        "stop after so many epochs without a better validation; never if not given",
    )
    head_epochs: int = option(
        0, integer(0), "epochs at the start in which the classifier alone learns"
    )
    layer_decay: float = option(
        1.0,
        number(lambda v: 0 < v <= 1, "a number above 0, up to 1"),
        "factor on the learning rate for each layer further below the classifier",
    )
    accumulate: int = option(1, integer(1), "batches whose mean gradient makes one update")
    clip_norm: float | None = option(
        None, optional(positive), "largest norm of all gradients together; no limit if not given"
    )
    ema: float | None = option(
        None,
        optional(share_below_one),
        "decay of an average of the weights, which is tested and kept; none if not given",
    )
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
    """Where a run is kept, and how it is carried out."""

    title = "run"

    out: str = option("runs/train", text, "folder of the run: checkpoints, result, pictures")
    seed: int = option(0, integer(0), "seed of the weights, the split, the order, the dropout")
    workers: int = option(0, integer(0), "processes that load data; 0 loads in the main one")
    device: str = option("auto", text, "auto (a GPU if there is one), cpu, cuda, cuda:1, mps, ...")
    backend: str = option(
        "auto",
        choice(*BACKENDS),
        "how neurons compute: cuda or cupy (fused kernels on a GPU), cpp (the same on a CPU), "
        "torch (PyTorch's operations), or auto (the kernels wherever they can run)",
    )
    chunk: int | str = option(
        1,
        chunk_size,
        "time steps that run together, layer by layer: faster, for memory that grows by about 5 "
        "bytes a neuron and step; auto takes as many as a quarter more memory holds",
    )
    cuda_graph: bool = option(
        False,
        flag,
        "on a GPU, record the passes of a batch once and replay them: for batches so small that "
        "the GPU waits for the host",
    )
    save_every: float = option(10.0, positive, "minutes between checkpoints within an epoch")
    time_limit: float | None = option(
        None,
        optional(positive),
        "minutes after which the run is saved and ends with exit code 75; no limit if not given",
    )
    on_nan: str = option(
        "stop",
        choice("stop", "skip"),
        "what a loss that is not finite does: stop the run, or skip the batch",
    )


@dataclasses.dataclass(frozen=True)
class AugmentationOptions(Section):
    """Random changes of the training samples: those of `Augmentation`, and CutMix of batches."""

    title = "augmentation"

    shift: int = option(
        Augmentation.shift, integer(0), "largest random shift of the training frames, in pixels"
    )
    flip: float = option(
        Augmentation.flip, share, "probability of flipping training frames left to right"
    )
    rotate: float = option(
        Augmentation.rotate,
        number(lambda v: 0 <= v <= 180, "a number from 0 to 180"),
        "largest random rotation of the training frames, in degrees",
    )
    drop_events: float = option(
        Augmentation.drop_events,
        share_below_one,
        "largest share of a training recording's events that is dropped at random",
    )
    time_jitter: float = option(
        Augmentation.time_jitter,
        share,
        "largest random move of each training event in time, in frames (up to 1)",
    )
    cutout: int = option(
        Augmentation.cutout,
        integer(0),
        "side of a random square that is blanked in the training frames, in pixels",
    )
    augment_on: str = option(
        "loader",
        choice("loader", "device"),
        "where training frames are changed: loader (each sample, by the processes that load) or "
        "device (each batch, where the model is: for a GPU that waits for its samples)",
    )
    cutmix: float = option(
        0.0, share, "probability that the recordings of a training batch exchange a box (CutMix)"
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
        "of fptt: share of the correction of that pull that is left out",
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
