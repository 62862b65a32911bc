"""What a run leaves on the disk: the checkpoint that resumes it, and the files of its models.

``last.pt`` alone is the state of a run. It holds the best weights too, so the model files are made
from it and written after it. ``previous.pt`` is the state that was saved before, for the case that
the disk damages the last one: each holds a digest of its content. Every file is written under a
temporary name, flushed to the disk and renamed; none is read with pickle.
"""

import dataclasses
import hashlib
import io
import json
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any, Self

import safetensors
import safetensors.torch
import torch

from sj_ottt._files import atomic_write, final_name, is_stored, temporary_sibling
from sj_ottt.data import Preprocessing, ReadOptions
from sj_ottt.data.activity import Activity
from sj_ottt.data.recordings.events import LARGEST_SENSOR
from sj_ottt.errors import InputError
from sj_ottt.run.sections import FrameOptions, LearningOptions

CHECKPOINT_FORMAT = 1
MODEL_FORMAT = 1
_MOST_CHANNELS = 1 << 16
_LAST, _PREVIOUS = "last.pt", "previous.pt"
# The files that a run writes into its folder.
_WRITTEN = re.compile(
    r"(last|previous)\.pt|(last|best)\.safetensors|result\.json|(curves|frames)\.png"
    r"|not_finite\.jsonl(\.\d+)?"
)


def write_file(path: Path, data: bytes | memoryview) -> None:
    """Write a file of a run so that at any moment the old or the new one is there, whole.

    Raises:
        InputError: The disk is full or not writable; the old file is untouched.
    """
    remedy = (
        "what was there before is untouched: free some space on the disk, then continue with "
        "--resume"
    )
    with atomic_write(path, remedy=remedy) as file:
        file.write(data)


def remove_leftovers(out: Path) -> None:
    """Remove the half-written files of a run that was killed; its folder has one writer."""
    for leftover in out.glob(".*.tmp"):
        if _WRITTEN.fullmatch(final_name(leftover) or "") and leftover.is_file():
            leftover.unlink(missing_ok=True)


def save_checkpoint(out: Path, state: Mapping[str, Any]) -> None:
    """Write ``out/last.pt``, tensors and plain values only; what it was becomes ``previous.pt``.

    Only a whole one does: a damaged one would take the place of one that can still be resumed.

    Raises:
        InputError: The disk is full or not writable; the old checkpoint is untouched.
    """
    content = {"format": CHECKPOINT_FORMAT, **state}
    buffer = io.BytesIO()
    torch.save({**content, "sha256": digest(content)}, buffer)
    if _is_whole(out / _LAST):
        _keep(out / _LAST, out / _PREVIOUS)
    write_file(out / _LAST, buffer.getbuffer())


def _keep(path: Path, copy: Path) -> None:
    """Give a file that is there a second name, in the place of what has it."""
    temporary = temporary_sibling(copy)
    try:
        os.link(path, temporary)
        os.replace(temporary, copy)
    except OSError:  # no hard links on this file system: a copy takes longer, and is as good
        write_file(copy, path.read_bytes())
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(out: str | Path) -> dict[str, Any]:
    """Read ``out/last.pt``, the state of a run; where it is damaged, the one before it.

    A warning says so then.

    Raises:
        InputError: There is none, all are damaged, or another version of sj_ottt wrote them.
    """
    path, previous = Path(out) / _LAST, Path(out) / _PREVIOUS
    if not path.exists():
        raise InputError(f"nothing to resume: {path} does not exist; start without --resume")
    try:
        state = _read_checkpoint(path)
    except _DamagedError as damage:
        try:
            state = _read_checkpoint(previous)
        except (_DamagedError, FileNotFoundError):
            raise InputError(
                f"{path} is damaged or not a checkpoint ({damage}); "
                "start a new run in another --out"
            ) from damage
        warnings.warn(
            f"{path} is damaged ({damage}); the one before it is used, {previous}", stacklevel=2
        )
    version = state["format"]
    if version != CHECKPOINT_FORMAT:
        raise InputError(
            f"{path} has checkpoint format {version}, this sj_ottt reads {CHECKPOINT_FORMAT}; "
            "resume with the version that wrote it, or choose another --out"
        )
    return state


def _is_whole(path: Path) -> bool:
    """Whether a checkpoint is there that can be resumed."""
    try:
        _read_checkpoint(path)
    except (_DamagedError, FileNotFoundError):
        return False
    return True


class _DamagedError(Exception):
    """A file that is no checkpoint, or whose content is not what was written."""


def _read_checkpoint(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size and not is_stored(path):
            raise ValueError("compressed, or no archive")
        state = torch.load(path, map_location="cpu", weights_only=True)
        _check_plain(state, path.stat().st_size)
        content = {key: value for key, value in state.items() if key != "sha256"}
        # A checkpoint of before there were digests knows of no middle of an epoch either.
        unmarked = content["format"] and "sha256" not in state and "middle" in state
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged file raises anything from EOFError to UnpicklingError
        raise _DamagedError(type(error).__name__) from error
    if unmarked or ("sha256" in state and state["sha256"] != digest(content)):
        raise _DamagedError("its content was changed")
    return content


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """What the file of a trained model says of it: how to build it, and how to feed it.

    Attributes:
        model: Its architecture.
        classes: Names of its classes.
        in_chans: Channels of its input.
        data: What it was trained on, as in `TrainConfig`.
        reading: How the recordings of that were read, as the user said it.
        frames: How samples became its input; `steps` and `size` are those that it saw, also where
            the data decided.
        readout: As in `TrainConfig`, as the next one. The rule itself is not part of the model:
            instruments compare several, and `adapt` has its own.
        rule_variant: Of its neurons.
        stats: Mean and standard deviation of each channel of its images; None for recordings.
        sensor_size: (height, width) in pixels of its recordings' sensor; None for images.
        window: Length of its samples in µs where they were sliced from longer recordings.
        min_events: The fewest events in one of them.
        activity: How active its recordings were; None for images, and in files from before that
            was kept.
        epoch: The epoch that it is of.
        val_accuracy: Its accuracy on the samples kept aside, 0 to 1; None where there were none.
        adapted: How many samples it has learned from since, one at a time; None if it has not.
    """

    model: str
    classes: tuple[str, ...]
    in_chans: int
    data: str
    frames: FrameOptions
    readout: str = LearningOptions.readout
    rule_variant: str = LearningOptions.rule_variant
    stats: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    sensor_size: tuple[int, int] | None = None
    window: int | None = None
    min_events: int | None = None
    activity: Activity | None = None
    reading: ReadOptions = dataclasses.field(default_factory=ReadOptions)
    epoch: int | None = None
    val_accuracy: float | None = None
    adapted: int | None = None

    def preprocessing(self) -> Preprocessing:
        """Return how a sample, or a recording's events, becomes its input."""
        return Preprocessing.from_options({**dataclasses.asdict(self.frames), "stats": self.stats})

    def to_metadata(self) -> dict[str, Any]:
        """Return flat names and values that JSON can hold, with the version of this format."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del values["frames"]  # the section; its own option "frames" is among its fields
        values["reading"] = dataclasses.asdict(self.reading)
        return {
            "format": f"sj_ottt/{MODEL_FORMAT}",
            "num_classes": len(self.classes),
            **values,
            **dataclasses.asdict(self.frames),
        }

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], source: str | Path) -> Self:
        """Read what `to_metadata` wrote.

        What is missing there is newer than the file and was at its default when it was written;
        what is unknown is ignored.

        Args:
            metadata: Names and values.
            source: The file, for messages.

        Raises:
            InputError: It is of another kind or version, or lacks what has no default.
        """
        package, _, version = str(metadata.get("format")).partition("/")
        if package != "sj_ottt":
            raise InputError(
                f"{source} was not written by `sj-ottt train`; give the --out of a run"
            )
        if version != str(MODEL_FORMAT):
            raise InputError(
                f"{source} has model format {version}, this sj_ottt reads {MODEL_FORMAT}; use the "
                "version that wrote it, or train again"
            )
        values = {name: _tuples(value) for name, value in metadata.items()}
        own = {f.name for f in dataclasses.fields(cls)} - {"frames"}
        needed = {"model", "classes", "in_chans", "data", "steps"}
        if missing := sorted(needed - values.keys()):
            raise InputError(f"{source} does not say its {', '.join(missing)}; train again")
        of_frames = {f.name for f in dataclasses.fields(FrameOptions)}
        try:
            frames = FrameOptions(**{k: v for k, v in values.items() if k in of_frames})
        except InputError as error:
            raise InputError(f"{source}: {error}; train again") from None
        try:
            if values.get("activity") is not None:
                values["activity"] = Activity(*values["activity"])
            of_reading = {f.name for f in dataclasses.fields(ReadOptions)}
            reading = {k: v for k, v in values.pop("reading", {}).items() if k in of_reading}
            values["reading"] = ReadOptions(**reading)
            info = cls(frames=frames, **{k: v for k, v in values.items() if k in own})
            info._check()
        except (TypeError, ValueError, AttributeError, InputError) as error:
            raise InputError(
                f"{source} says of its model what cannot be ({error}); train again"
            ) from error
        return info

    def _check(self) -> None:
        """Raise `ValueError` where a value is not what it must be, whoever has written it."""
        size = (*(self.sensor_size or ()), *_flat(self.frames.size), *_flat(self.frames.crop))
        times = [value for value in (self.window, self.min_events) if value is not None]
        texts = (self.model, self.data, self.readout, self.rule_variant, *self.classes)
        for name, right in (
            ("a text", all(isinstance(text, str) for text in texts)),
            ("classes", len(self.classes) > 0),
            ("in_chans", type(self.in_chans) is int and 0 < self.in_chans <= _MOST_CHANNELS),
            ("a size", all(type(side) is int and 0 <= side <= LARGEST_SENSOR for side in size)),
            ("sensor_size", self.sensor_size is None or len(self.sensor_size) == 2),
            ("window or min_events", all(type(n) is int and 0 < n < 1 << 62 for n in times)),
            ("stats", self.stats is None or [type(of) for of in self.stats] == [tuple] * 2),
        ):
            if not right:
                raise ValueError(f"{name} is wrong")


def _flat(size: Any) -> tuple[Any, ...]:
    return size if isinstance(size, tuple) else () if size is None else (size,)


def _tuples(value: Any) -> Any:
    """Turn the lists of JSON into tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _check_plain(content: Any, n_bytes: int) -> None:
    """Raise `ValueError` unless content is of tensors and plain values, as many as a file can hold.

    What a file states once may be meant a thousand times over: a list within lists, or one number
    that is seen as a tensor of any size.
    """
    waiting = [content]
    while waiting:
        n_bytes -= 1
        value = waiting.pop()
        if isinstance(value, Mapping):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple):
            waiting += value
        elif isinstance(value, torch.Tensor):
            if value.numel() * value.element_size() > value.untyped_storage().nbytes():
                raise ValueError("a tensor larger than its storage")
        elif not isinstance(value, str | int | float | NoneType):
            raise ValueError(f"a {type(value).__name__}")
        if len(waiting) > n_bytes:
            raise ValueError("more values than it can hold")


def digest(content: Mapping[str, Any]) -> str:
    """Digest tensors and plain values in dicts, lists and tuples."""
    sha = hashlib.sha256()

    def add(name: str, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            tensor = value.detach().cpu().contiguous()
            sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            sha.update(tensor.flatten().view(torch.uint8).numpy().data)
        elif isinstance(value, Mapping):
            for key in sorted(value, key=str):
                add(f"{name}.{key}" if name else str(key), value[key])
        elif isinstance(value, list | tuple):
            for i, item in enumerate(value):
                add(f"{name}.{i}", item)
        else:
            sha.update(f"{name} {value!r}".encode())

    add("", content)
    return sha.hexdigest()


def write_model(path: Path, tensors: Mapping[str, torch.Tensor], info: ModelInfo) -> None:
    """Write weights as safetensors, with what describes them as metadata.

    Raises:
        InputError: The disk is full or not writable; the old file is untouched.
    """
    values = {**info.to_metadata(), "sha256": digest(tensors)}
    metadata = {key: json.dumps(value) for key, value in values.items()}
    write_file(path, safetensors.torch.save(dict(tensors), metadata=metadata))


def read_model(path: Path) -> tuple[dict[str, torch.Tensor], ModelInfo]:
    """Read what `write_model` wrote.

    Raises:
        InputError: The file is missing, damaged, changed, of another version or not one of ours.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist; give the --out of a finished `sj-ottt train`")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            values = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, ValueError, RecursionError, safetensors.SafetensorError) as error:
        raise InputError(f"{path} is damaged ({error}); copy it again, or train again") from error
    info = ModelInfo.from_metadata(values, path)
    if values.get("sha256") != digest(tensors):
        raise InputError(f"{path} was changed after training; copy it again, or train again")
    return tensors, info
