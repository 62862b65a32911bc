"""The configuration of a training run: sections of options, from a recipe and overrides."""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self, get_type_hints

from sj_ottt._yaml import load_yaml
from sj_ottt.errors import InputError, suggest
from sj_ottt.run.finetune import usual_options
from sj_ottt.run.options import Section
from sj_ottt.run.sections import (
    AugmentationOptions,
    DatasetOptions,
    FPTTOptions,
    FrameOptions,
    LearningOptions,
    NetworkOptions,
    OptimisationOptions,
    RunOptions,
)


@dataclasses.dataclass(frozen=True, init=False)
class TrainConfig:
    """Everything that decides a training run.

    Options are given flat, as in a recipe, and read from their sections:

        cfg = TrainConfig(model="ottt_vgg5_ws", lr=0.1)
        cfg.optimisation.lr

    Args:
        **options: Values by the names of the sections' fields. Those left out have their defaults;
            ``optimizer`` and ``lr`` those of `finetune.usual_options`.

    Raises:
        InputError: An unknown name, or a value of the wrong type, out of range or that does not go
            with another one; the message names the option.
    """

    # In the order of the command's help: what is set most often comes first.
    dataset: DatasetOptions
    network: NetworkOptions
    frames: FrameOptions
    learning: LearningOptions
    optimisation: OptimisationOptions
    run: RunOptions
    augmentation: AugmentationOptions
    fptt: FPTTOptions

    def __init__(self, /, **options: Any) -> None:
        self._check_names(options)
        self._fill(options)  # which checks what is given
        usual = usual_options(options.get("optimizer"), self.network.pretrained is not None)
        self._fill({**usual, **options})
        self._check_across_sections()

    def _fill(self, options: Mapping[str, Any]) -> None:
        for attribute, section in self.sections().items():
            own = {f.name for f in dataclasses.fields(section)}
            values = {name: value for name, value in options.items() if name in own}
            object.__setattr__(self, attribute, section(**values))

    @classmethod
    def sections(cls) -> dict[str, type[Section]]:
        """Return the sections' classes by their attributes."""
        return get_type_hints(cls)

    @classmethod
    def option_names(cls) -> list[str]:
        """Return the flat names of all options, section by section."""
        fields = (dataclasses.fields(section) for section in cls.sections().values())
        return [field.name for field in itertools.chain.from_iterable(fields)]

    @classmethod
    def from_sources(
        cls,
        yaml_file: str | Path | None = None,
        overrides: Mapping[str, Any] | None = None,
        *,
        base: Self | None = None,
    ) -> Self:
        """Build a configuration: overrides win over the YAML file, which wins over the base.

        Args:
            yaml_file: Recipe whose keys are names of options.
            overrides: Values given by name, such as those of the command line.
            base: Values of the options that neither source names; the defaults if not given.

        Raises:
            InputError: A file that cannot be read, an unknown key, a bad value; the message names
                the file and the key.
        """
        start = {} if base is None else base.flat()
        overrides = overrides or {}
        if yaml_file is None:
            return cls(**{**start, **overrides})
        values = _read_yaml(Path(yaml_file))
        try:
            cls._check_names(values)
            return cls(**{**start, **values, **overrides})
        except InputError as error:
            if str(error) == cls._fault({**start, **overrides}):  # with or without the file
                raise
            raise InputError(f"{yaml_file}: {error}") from None

    @classmethod
    def _fault(cls, options: Mapping[str, Any]) -> str | None:
        """Return what is wrong with options, None where nothing is."""
        try:
            cls(**options)
        except InputError as error:
            return str(error)
        return None

    @classmethod
    def out_of(cls, yaml_file: str | Path | None, overrides: Mapping[str, Any]) -> str:
        """Return the run's folder, as `from_sources` does, whatever else the sources say.

        Raises:
            InputError: The file cannot be read, or the folder is none.
        """
        given = {**(_read_yaml(Path(yaml_file)) if yaml_file is not None else {}), **overrides}
        return cls(**{name: given[name] for name in ("out",) if name in given}).run.out

    def replace(self, options: Mapping[str, Any]) -> Self:
        """Return a copy with other values of some options, given by their flat names.

        All others count as given, and stay.
        """
        self._check_names(options)
        return type(self)(**{**self.flat(), **options})

    def flat(self) -> dict[str, Any]:
        """Return the value of every option by its flat name, as results and checkpoints keep it."""
        sections = (getattr(self, attribute) for attribute in self.sections())
        return {
            field.name: getattr(section, field.name)
            for section in sections
            for field in dataclasses.fields(section)
        }

    @classmethod
    def _check_names(cls, options: Iterable[Any]) -> None:
        names = cls.option_names()
        for name in options:
            if name not in names:
                hint = suggest(str(name), names) or "; known keys: " + ", ".join(names)
                raise InputError(f"unknown key {name!r}{hint}")

    def _check_across_sections(self) -> None:
        frames, learning, optimisation = self.frames, self.learning, self.optimisation
        for field in dataclasses.fields(self.fptt):
            value = getattr(self.fptt, field.name)
            if learning.rule != "fptt" and value != field.default:
                raise InputError(
                    f'{field.name}={value} does not go with rule="{learning.rule}": leave it out, '
                    "or use rule=fptt"
                )
        for name, steps in (
            ("backward_steps", learning.backward_steps),
            ("parts", self.fptt.parts),
        ):
            if (steps or 1) > frames.steps and not frames.steps_from_image:
                raise InputError(f"{name} must be at most steps={frames.steps}, not {steps}")
        if self.run.chunk not in (1, "auto") and learning.update == "online":
            raise InputError(
                f"chunk={self.run.chunk} does not go with update=online, whose weights change at "
                "each time step: leave one out"
            )
        if optimisation.early_stop is not None and not self.dataset.val_fraction:
            raise InputError("early_stop needs recordings to validate on: set val_fraction above 0")
        for name in ("drop_events", "time_jitter"):
            if getattr(self.augmentation, name) and frames.frames != "counts":
                raise InputError(f'{name} goes with frames="counts" only: leave one out')
        for name, default in (("accumulate", 1), ("clip_norm", None), ("ema", None)):
            if learning.rule == "fptt" and getattr(optimisation, name) != default:
                raise InputError(
                    f'{name}={getattr(optimisation, name)} does not go with rule="fptt", which '
                    "updates within a sequence, with a limit (fptt_clip) and averages of its own: "
                    "leave it out"
                )
        if learning.update == "online" and optimisation.accumulate > 1:
            raise InputError(
                f"accumulate={optimisation.accumulate} does not go with update=online, which "
                "updates at each time step: leave one out"
            )
        if learning.rule == "fptt" and optimisation.amp == "float16":
            raise InputError("amp=float16 needs a scaled loss, which fptt lacks: use bfloat16")


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise InputError(f"cannot read the configuration {path}: {why}; check the path") from None
    values = load_yaml(text, str(path))
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(f"{path}: must hold `key: value` lines, one for each option")
    return values
