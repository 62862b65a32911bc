"""The configuration of a training run: named fields, checked once, from YAML and overrides.

Free of torch, so that the command line can describe every option without loading it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from sj_ottt.errors import InputError, suggest


def _option(default: Any, check: Callable[[Any], Any], text: str) -> Any:
    return dataclasses.field(default=default, metadata={"check": check, "help": text})


# A check returns the value in its final type, or raises ValueError saying what would be accepted.
# Text is accepted for numbers: the command line has nothing else, and YAML 1.1 reads 1e-3 as text.


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("a text that is not empty")
    return value


def _choice(*names: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if value not in names:
            raise ValueError("one of " + ", ".join(names))
        return value

    return check


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def _integer(low: int) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        message = f"a whole number from {low} on"
        if isinstance(value, bool | float):
            raise ValueError(message)
        try:
            number = int(value)
        except (TypeError, ValueError):
            raise ValueError(message) from None
        if not low <= number < 2**63:
            raise ValueError(message)
        return number

    return check


def _number(accepts: Callable[[float], bool], message: str) -> Callable[[Any], float]:
    def check(value: Any) -> float:
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not (math.isfinite(number) and accepts(number)):
            raise ValueError(message)
        return number

    return check


_share = _number(lambda v: 0 <= v <= 1, "a number from 0 to 1")
_below_one = _number(lambda v: 0 <= v < 1, "a number from 0 to below 1")


def _optional(check: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else check(value)


def _size(value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    message = "two whole numbers from 1 on, height and width in pixels"
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError(message)
    try:
        height, width = map(_integer(1), value)
    except ValueError:
        raise ValueError(message) from None
    return height, width


def _crop(value: Any) -> tuple[int, ...] | None:
    if value is None:
        return None
    message = "two or four whole numbers: (top, left,) height and width in pixels"
    if not isinstance(value, list | tuple) or len(value) not in (2, 4):
        raise ValueError(message)
    try:
        return (*map(_integer(0), value[:-2]), *map(_integer(1), value[-2:]))
    except ValueError:
        raise ValueError(message) from None


def _names(value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(n, str) and n for n in names):
        raise ValueError("names with commas between them")
    return tuple(names)


def _pretrained(value: Any) -> bool | str | None:
    if value in (None, False):
        return None
    if value is True or (isinstance(value, str) and value):
        return value
    raise ValueError("true, the tag of the weights, or a path")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a training run.

    Field names are the keys of a YAML recipe and, with dashes, the flags of ``sj-ottt train``.
    Values are checked on construction.

    Raises:
        InputError: A value has the wrong type or is out of range; the message names the field.
    """

    model: str = _option("ottt_vgg5_ws", _text, "model name, see `sj-ottt models`")
    data: str = _option(
        "ndigits",
        _text,
        "folder of recordings, npz file of images, ndigits, or SET:DIR with SET one of nmnist, "
        "dvs128gesture, cifar10dvs, ncaltech101, cifar10, cifar100, mnist, fashionmnist, "
        "imagenet, folder",
    )
    out: str = _option("runs/train", _text, "folder of the run: checkpoints, result, pictures")
    pretrained: bool | str | None = _option(
        None,
        _pretrained,
        "start from the weights of the model zoo, those of TAG if given; or from those of a run's "
        "folder or a weight file, given by its path",
    )
    freeze: tuple[str, ...] | None = _option(
        None, _names, "parts of the model that do not learn, such as stem,layer1"
    )
    head_epochs: int = _option(
        0, _integer(0), "epochs at the start in which the classifier alone learns"
    )
    layer_decay: float = _option(
        1.0,
        _number(lambda v: 0 < v <= 1, "a number above 0, up to 1"),
        "factor on the learning rate for each layer further from the classifier",
    )
    pull_to: str | None = _option(
        None,
        _optional(_text),
        "start from the best weights of this run's folder, and stay near them (FTRL-OTTT)",
    )
    pull: float = _option(
        1e-3, _number(lambda v: v >= 0, "a finite number from 0 on"), "strength of that pull"
    )
    pull_norm: str = _option("l2", _choice("l2", "l1"), "its norm: l2 or l1")
    epochs: int = _option(10, _integer(1), "passes over the training recordings")
    early_stop: int | None = _option(
        None,
        _optional(_integer(1)),
        "stop after so many epochs without a better validation; never if not given",
    )
    batch_size: int = _option(32, _integer(1), "recordings per batch")
    lr: float = _option(
        0.05, _number(lambda v: v > 0, "a finite number above 0"), "highest learning rate"
    )
    optimizer: str = _option(
        "sgd",
        _choice("sgd", "adam", "adamw", "adamax"),
        "sgd (momentum 0.9), adam, adamw or adamax",
    )
    weight_decay: float = _option(
        0.0, _number(lambda v: v >= 0, "a finite number from 0 on"), "weight decay"
    )
    schedule: str = _option(
        "cosine", _choice("cosine", "constant"), "learning rate: cosine (to 0) or constant"
    )
    rule: str = _option(
        "ottt",
        _choice("ottt", "sltt", "ndot", "bptt", "fptt"),
        "learning rule: ottt, sltt, ndot, bptt (which keeps all time steps in memory) or fptt "
        "(updates within a sequence, by the model's own gradient)",
    )
    rule_variant: str = _option(
        "paper", _choice("paper", "code"), "of ndot: as in its paper, or as in its authors' code"
    )
    parts: int | None = _option(
        None, _optional(_integer(1)), "of fptt: parts of a sequence, one a time step if not given"
    )
    fptt_alpha: float = _option(
        0.1, _number(lambda v: v > 0, "a finite number above 0"), "of fptt: pull to the averages"
    )
    fptt_beta: float = _option(
        0.5, _number(lambda v: 0 <= v <= 1, "a number from 0 to 1"), "of fptt: pace of the averages"
    )
    fptt_rho: float = _option(
        0.0,
        _number(lambda v: 0 <= v <= 1, "a number from 0 to 1"),
        "of fptt: what is left out of the correction of that pull",
    )
    fptt_clip: float = _option(
        1.0,
        _number(lambda v: v >= 0, "a finite number from 0 on"),
        "of fptt: largest norm of the gradients, 0: no limit",
    )
    fptt_form: str = _option(
        "lambda",
        _choice("lambda", "grad"),
        "of fptt: lambda, or grad (a second pass for each update)",
    )
    readout: str = _option(
        "traced", _choice("traced", "exact"), "gradient of the classifier: by trace or by spike"
    )
    update: str = _option(
        "accumulate",
        _choice("accumulate", "online"),
        "update the weights once a sequence (accumulate) or at each time step (online)",
    )
    backward_steps: int | None = _option(
        None,
        _optional(_integer(1)),
        "time steps with a backward pass, drawn per batch; all if not given",
    )
    amp: str = _option(
        "off", _choice("off", "bfloat16", "float16"), "mixed precision: off, bfloat16 or float16"
    )
    steps: int = _option(6, _integer(1), "time steps (frames) per recording")
    size: tuple[int, int] | None = _option(
        None, _size, "height and width of the frames in pixels, the sensor's if not given"
    )
    split_by: str = _option(
        "count", _choice("count", "duration"), "frames of equal event count or equal duration"
    )
    frames: str = _option(
        "counts",
        _choice("counts", "surface"),
        "what frames show: counts of events, or a time surface (how long ago each pixel fired)",
    )
    tau_us: float | None = _option(
        None,
        _optional(_number(lambda v: v > 0, "a finite number above 0")),
        "time constant of the surface in µs, half a frame if not given",
    )
    crop: tuple[int, ...] | None = _option(
        None,
        _crop,
        "part of the sensor that is used: height and width of its middle, or top, left, height "
        "and width; all of it if not given",
    )
    hot_pixels: float | None = _option(
        None,
        _optional(_number(lambda v: v >= 1, "a finite number from 1 on")),
        "drop pixels that fire this many times as often as those around them, such as 10; none if "
        "not given",
    )
    normalize: bool = _option(
        True, _flag, "scale the event counts of each recording, standardize images"
    )
    encoding: str = _option(
        "direct",
        _choice("direct", "poisson", "rows", "pixels", "permuted"),
        "how images become sequences: direct (shown at each step), poisson, rows, pixels or "
        "permuted",
    )
    shift: int = _option(0, _integer(0), "random shift of the training frames, at most, in pixels")
    flip: float = _option(0.0, _share, "probability of flipping training frames left to right")
    rotate: float = _option(
        0.0,
        _number(lambda v: 0 <= v <= 180, "a number from 0 to 180"),
        "random rotation of the training frames, at most, in degrees",
    )
    drop_events: float = _option(
        0.0,
        _below_one,
        "share of the events of a training recording that is dropped, at most",
    )
    time_jitter: float = _option(
        0.0, _share, "random move of each training event in time, at most, in frames (up to 1)"
    )
    cutout: int = _option(0, _integer(0), "blank a random square of the training frames, in pixels")
    cutmix: float = _option(
        0.0, _share, "probability that a training batch has boxes of its recordings exchanged"
    )
    drop_rate: float = _option(0.0, _below_one, "dropout probability")
    spike_drop_rate: float = _option(
        0.0,
        _below_one,
        "dropout probability behind each neuron, of models that have it (the VGGs)",
    )
    mse_weight: float = _option(
        0.05,
        _share,
        "share of the mean squared error in the loss, the rest is cross entropy",
    )
    class_weights: bool = _option(
        False, _flag, "weigh the loss of each class by the inverse of its frequency"
    )
    train_samples: int | None = _option(
        None,
        _optional(_integer(1)),
        "train on so many samples only, the same number of each class; all if not given",
    )
    val_fraction: float = _option(
        0.1,
        _below_one,
        "share of the training recordings kept aside to choose the best epoch",
    )
    seed: int = _option(0, _integer(0), "seed of the weights, the split, the order, the dropout")
    workers: int = _option(0, _integer(0), "processes that load data, 0: the main one")
    device: str = _option("auto", _text, "cpu, cuda, cuda:1, ...; auto: a GPU if there is one")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            try:
                object.__setattr__(self, field.name, field.metadata["check"](value))
            except ValueError as error:
                raise InputError(f"{field.name} must be {error}, not {value!r}") from None
        if (self.backward_steps or 1) > self.steps and not self._steps_from_image:
            raise InputError(
                f"backward_steps must be at most steps={self.steps}, not {self.backward_steps}"
            )
        if self.early_stop is not None and not self.val_fraction:
            raise InputError("early_stop needs recordings to validate on: set val_fraction above 0")
        if self.head_epochs > self.epochs:
            raise InputError(
                f"head_epochs must be at most epochs={self.epochs}, not {self.head_epochs}"
            )
        if self.tau_us is not None and self.frames != "surface":
            raise InputError('tau_us goes with frames="surface" only: leave one out')
        for name in ("drop_events", "time_jitter"):
            if getattr(self, name) and self.frames != "counts":
                raise InputError(f'{name} goes with frames="counts" only: leave one out')
        self._check_rule()

    @property
    def _steps_from_image(self) -> bool:
        """Whether the images' size decides the number of time steps."""
        return self.encoding in ("rows", "pixels", "permuted")

    def _check_rule(self) -> None:
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
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            ours = field.name == "parts" or field.name.startswith("fptt_")
            if ours and self.rule != "fptt" and value != field.default:
                raise InputError(
                    f'{field.name}={value} does not go with rule="{self.rule}": leave it out, or '
                    "use rule=fptt"
                )
        if self.rule_variant != "paper" and self.rule != "ndot":
            raise InputError(
                f'rule_variant={self.rule_variant} does not go with rule="{self.rule}": leave it '
                "out, or use rule=ndot"
            )
        if self.parts is not None and self.parts > self.steps and not self._steps_from_image:
            raise InputError(f"parts must be at most steps={self.steps}, not {self.parts}")
        if self.fptt_form == "grad" and (self.fptt_beta, self.fptt_rho) != (0.5, 0.0):
            raise InputError("fptt_form=grad has no fptt_beta and fptt_rho: leave them out")
        if self.rule == "fptt" and self.amp == "float16":
            raise InputError("amp=float16 needs a scaled loss, which fptt has not: use bfloat16")

    @classmethod
    def from_sources(
        cls,
        yaml_file: str | Path | None = None,
        overrides: Mapping[str, Any] | None = None,
        *,
        base: TrainConfig | None = None,
    ) -> TrainConfig:
        """Build a configuration: overrides go before the YAML file, that before the base.

        Args:
            yaml_file: Recipe whose keys are field names.
            overrides: Values given by name, such as those of the command line.
            base: Values of the fields that neither source names; the defaults if not given.

        Raises:
            InputError: A file that cannot be read, an unknown key, a bad value; the message names
                the file and the key.
        """
        config = base or cls()
        if yaml_file is not None:
            config = config._replace(_read_yaml(Path(yaml_file)), where=f"{yaml_file}: ")
        return config._replace(overrides or {})

    def _replace(self, values: Mapping[str, Any], where: str = "") -> TrainConfig:
        names = [field.name for field in dataclasses.fields(self)]
        for key in values:
            if key not in names:
                hint = suggest(str(key), names) or "; known keys: " + ", ".join(names)
                raise InputError(f"{where}unknown key {key!r}{hint}")
        try:
            return dataclasses.replace(self, **values)
        except InputError as error:
            raise InputError(f"{where}{error}") from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the configuration {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"{path}{place}: not valid YAML; write one `key: value` a line") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(f"{path}: must hold `key: value` lines, one for each option")
    return values
