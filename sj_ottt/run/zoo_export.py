"""A run's weights into a zoo, with a card that says where they come from."""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from sj_ottt import zoo
from sj_ottt.data import Framing, Preprocessing, ReadOptions
from sj_ottt.data.sets.images import IMAGE_SETS
from sj_ottt.data.sets.published import EVENT_SETS
from sj_ottt.errors import InputError
from sj_ottt.run.checkpoint import ModelInfo, read_model
from sj_ottt.run.config import TrainConfig
from sj_ottt.run.result import read_result
from sj_ottt.run.sections import LearningOptions
from sj_ottt.zoo.cards import Figure, write_card

__all__ = ["data_name", "export_run"]

_WEIGHTS, _PROVENANCE = "weights.safetensors", "provenance.json"
_PLACES = ("out", "data", "device", "workers", "save_every", "time_limit", "seed")
# Sums in another order flip single spikes, and more of them in bfloat16, in which a pretraining
# measures: another machine's value may lie so far away.
_TOLERANCE, _TOLERANCE_BFLOAT16, _FLIPPED = 0.005, 0.01, 2


def export_run(
    run: str | Path,
    tag: str,
    to: str | Path | None = None,
    *,
    about: str = "",
    license: str = "other",
    notes: Mapping[str, str] | None = None,
    float16: bool = False,
    replace: bool = False,
) -> zoo.ZooEntry:
    """Put a run's best weights into a zoo, with a card: their figures and how they came to be.

    The safetensors file, the card and the row of the manifest are all that a zoo holds of them, and
    no path of this machine.

    Args:
        run: The folder of a finished run of ``sj-ottt train``; or of another program that leaves
            ``weights.safetensors`` (as `run.checkpoint.write_model` does) and ``provenance.json``,
            as ``examples/pretrain.py`` does.
        tag: The weights' tag, as in timm.
        to: The zoo; that of the user if not given, see `zoo.own_folder`.
        about: What people should know of them, for the card.
        license: As model hubs name it, such as apache-2.0.
        notes: More of their provenance, such as the commit.
        float16: Store them in half the bytes.
        replace: Put them in the place of weights of the same name.

    Returns:
        Their entry in the zoo.

    Raises:
        InputError: The run is not finished, damaged, or of a network without frames; the tag is
            no name, or taken; the folder cannot be written.
    """
    folder = Path(run)
    zoo.check_tag(tag)
    tensors, info = read_model(folder / _file_of(folder))
    result = read_result(folder)
    if result is not None:
        trained_on, provenance, figure = _of_training(result, info)
    else:
        trained_on, provenance, figure = _of_provenance(folder / _PROVENANCE)
    if taken := sorted((notes or {}).keys() & provenance.keys()):
        raise InputError(
            f"note {taken[0]}={(notes or {})[taken[0]]}: the card says {taken[0]} of the run "
            "itself; choose another key"
        )
    model = _model(info, tensors)
    tensors = model.state_dict()  # under today's names
    if float16:
        tensors = {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}
    name = f"{info.model}.{tag}"
    card = write_card(
        name,
        about=about,
        license=license,
        trained_on=trained_on,
        provenance={**(notes or {}), **provenance},
        results=[figure],
    )
    data = save(tensors, metadata={"format": "pt", "name": name})
    cfg = {**_cfg(info, model), "license": license}
    options = {} if info.readout == LearningOptions.readout else {"readout": info.readout}
    target = zoo.own_folder(to)
    return zoo.add_to_zoo(target, name, data, card, cfg, options=options, replace=replace)


def data_name(spec: str) -> str:
    """Return a data set's name without its place: that of its kind, else that of its file.

    A folder of images has both, as it is no set that its kind alone would name.
    """
    kind, colon, place = spec.partition(":")
    if not colon or kind not in (*EVENT_SETS, *IMAGE_SETS):
        return Path(spec).name
    return f"{kind}:{Path(place).name}" if kind == "folder" else kind


def _file_of(folder: Path) -> str:
    if (folder / "result.json").exists():
        return "best.safetensors"
    if (folder / _PROVENANCE).exists():
        return _WEIGHTS
    raise InputError(
        f"{folder} is not the folder of a finished run: it has no result.json; give the --out of "
        "`sj-ottt train`, or finish it with --resume"
    )


def _of_training(result: Mapping[str, Any], info: ModelInfo) -> tuple[str, dict[str, Any], Figure]:
    """Return what a run of `sj-ottt train` was trained on, its provenance, and its figure."""
    config, trained_on = result["config"], data_name(result["config"]["data"])
    defaults = TrainConfig().flat()
    changed = {k: v for k, v in config.items() if k not in _PLACES and v != defaults.get(k)}
    provenance = {
        "options": {k: _without_folder(v) for k, v in changed.items()},
        "seed": config["seed"],
        "samples": result["n_train"],
        "validated_on": result["n_val"],
        "epoch": f"{result['best_epoch']} of {result['epochs']}",
        "minutes": round(result["seconds"] / 60, 1),
        "device": result["device"],
        "versions": result["versions"],
    }
    accuracy, samples = result["test_accuracy"], result["n_test"]
    figure = _figure(
        trained_on, accuracy, samples, info.preprocessing(), info.readout, reading=info.reading
    )
    return trained_on, provenance, figure


def _of_provenance(file: Path) -> tuple[str, dict[str, Any], Figure]:
    """Return the same of a run that left its facts: a pretraining on images as saccades."""
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        options, sets = facts["options"], facts["data"]
        first = re.sub(r":\d+$", "", sets[0])  # how many images were learnt from
        size, steps = options["size"], options["steps"]
        seen = Preprocessing(Framing(steps, (size, size)), encoding="saccade")
        accuracy, samples = facts["test_accuracy"], facts["n_test"]
        figure = _figure(first, accuracy, samples, seen, tolerance=_TOLERANCE_BFLOAT16)
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(
            f"{file} does not say what the weights were trained on and tested with "
            f"({type(error).__name__}: {error}); let the program that wrote it finish"
        ) from error
    told = ("model", "test_accuracy", "n_test")
    return ", ".join(sets), {k: v for k, v in facts.items() if k not in told}, figure


def _figure(
    data: str,
    accuracy: float,
    samples: int,
    seen: Preprocessing,
    readout: str = "traced",
    tolerance: float = _TOLERANCE,
    reading: ReadOptions | None = None,
) -> Figure:
    usual = Preprocessing(Framing(1)).options()
    given = {k: v for k, v in seen.options().items() if k == "steps" or v != usual.get(k)}
    read = {k: v for k, v in dataclasses.asdict(reading or ReadOptions()).items() if v}
    return Figure(
        data=data,
        split="test",
        samples=samples,
        metric="accuracy",
        value=round(float(accuracy), 6),
        tolerance=min(1.0, max(tolerance, _FLIPPED / samples)),
        input=json.loads(json.dumps(given)),  # YAML has no tuples
        readout=readout,
        reading=json.loads(json.dumps(read)),
    )


def _without_folder(value: Any) -> Any:
    return Path(value).name if isinstance(value, str) and "/" in value.replace("\\", "/") else value


def _model(info: ModelInfo, tensors: Mapping[str, Tensor]) -> Any:
    """Return the run's network."""
    model: Any = zoo.create(info.model, len(info.classes), in_chans=info.in_chans).eval()
    if not isinstance(info.frames.size, tuple) or model.pretrained_cfg.get("pool_size") is None:
        raise InputError(f"{info.model} takes no frames with height and width: a zoo holds others")
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(
            f"the run's weights do not fit this version's {info.model}: export them with the "
            "version that trained them, or train again"
        ) from error
    return model


def _cfg(info: ModelInfo, model: Any) -> dict[str, Any]:
    """Return the fields of timm's configuration, those of pooling measured."""
    size: Any = info.frames.size
    with torch.no_grad():
        features = model.forward_features(torch.zeros(1, info.in_chans, *size))
    mean, std = (0.0,) * info.in_chans, (1.0,) * info.in_chans
    if info.stats and info.frames.normalize and info.frames.encoding == "direct":
        mean, std = info.stats  # of images that the network sees as they are, standardized
    return {
        "input_size": [info.in_chans, *size],
        "pool_size": list(features.shape[-2:]),
        "num_classes": len(info.classes),
        "label_names": list(info.classes),
        "mean": list(mean),
        "std": list(std),
        "crop_pct": 1.0,
    }
