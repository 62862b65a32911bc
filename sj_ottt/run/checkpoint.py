"""What a run leaves on the disk: the checkpoint that resumes it, and the model files.

``last.pt`` alone is the state of a run. It holds the best weights too, so the model files are made
from it and written after it. Every file is written beside its place, flushed to the disk and
renamed; none is read with pickle.
"""

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from sj_ottt._files import atomic_write
from sj_ottt.errors import InputError

CHECKPOINT_FORMAT = 1
MODEL_FORMAT = "sj_ottt/1"


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
    """Remove the half-written files of a killed process; a run's folder has one writer."""
    for leftover in out.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def save_checkpoint(out: Path, state: Mapping[str, Any]) -> None:
    """Write ``out/last.pt``: tensors and plain values only.

    Raises:
        InputError: The disk is full or not writable; the old checkpoint is untouched.
    """
    buffer = io.BytesIO()
    torch.save({"format": CHECKPOINT_FORMAT, **state}, buffer)
    write_file(out / "last.pt", buffer.getbuffer())


def load_checkpoint(out: str | Path) -> dict[str, Any]:
    """Read ``out/last.pt``, the state of a run after its last whole epoch.

    Raises:
        InputError: There is none, it is damaged, or another version of sj_ottt wrote it.
    """
    path = Path(out) / "last.pt"
    if not path.exists():
        raise InputError(f"nothing to resume: {path} does not exist; start without --resume")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        version = state["format"]
    except Exception as error:  # a damaged file raises anything from EOFError to UnpicklingError
        raise InputError(
            f"{path} is damaged or not a checkpoint ({type(error).__name__}); "
            "delete it and start again, or choose another --out"
        ) from error
    if version != CHECKPOINT_FORMAT:
        raise InputError(
            f"{path} has checkpoint format {version}, this sj_ottt reads {CHECKPOINT_FORMAT}; "
            "resume with the version that wrote it, or choose another --out"
        )
    return state


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(tensor.flatten().view(torch.uint8).numpy().data)
    return sha.hexdigest()


def write_model(path: Path, tensors: Mapping[str, torch.Tensor], about: dict[str, Any]) -> None:
    """Write weights as safetensors, with what is to be known about them as metadata.

    Raises:
        InputError: The disk is full or not writable; the old file is untouched.
    """
    about = {"format": MODEL_FORMAT, "sha256": _digest(tensors), **about}
    metadata = {key: json.dumps(value) for key, value in about.items()}
    write_file(path, safetensors.torch.save(dict(tensors), metadata=metadata))


def read_model(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read what `write_model` wrote: the weights, and what is known about them.

    Raises:
        InputError: The file is missing, damaged, changed, or not one of ours.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist; give the --out of a finished `sj-ottt train`")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            about = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise InputError(f"{path} is damaged ({error}); copy it again, or train again") from error
    if about.get("format") != MODEL_FORMAT:
        raise InputError(f"{path} was not written by `sj-ottt train`; give the --out of a run")
    if about["sha256"] != _digest(tensors):
        raise InputError(f"{path} was changed after training; copy it again, or train again")
    return tensors, about
