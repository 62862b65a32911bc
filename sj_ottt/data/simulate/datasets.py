"""Turn images, as arrays or a folder of files, into a data set recorded by the simulated camera."""

import contextlib
import json
import os
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from sj_ottt._files import atomic_folder, atomic_write
from sj_ottt._parallel import ordered_map
from sj_ottt.data.frames.frames import check_size
from sj_ottt.data.recordings.events import write_events
from sj_ottt.data.recordings.folders import PARTS, Classes, choose_tests, scan
from sj_ottt.data.simulate.camera import saccade_events
from sj_ottt.errors import InputError

# Photographs are first reduced to this many times the sensor's sides: it resolves no more.
_DETAIL = 4


def write_event_dataset(
    root: Path,
    images: Sequence[np.ndarray],
    labels: Sequence[int],
    class_names: Sequence[str],
    *,
    split: str,
    seed: int = 0,
    sensor_size: tuple[int, int] = (34, 34),
    progress: bool = False,
    **camera: Any,
) -> None:
    """Record images and write them as one part of a data set that `EventFolder` reads.

    Recording i goes to ``root/<split>/<class>/<i>.npz``, and depends only on its image, the camera
    and (seed, split, i). ``root/dataset.json`` states the sensor's size.

    Args:
        root: The data set's folder, made where it is missing.
        images: n grayscale images, see `saccade_events`.
        labels: n indices into ``class_names``.
        class_names: Names of the class folders.
        split: Name of the part: ``"train"`` or ``"test"``.
        seed: Of the sensor's pixels.
        sensor_size: (height, width) in pixels.
        progress: Show a progress bar where there is a terminal.
        **camera: Other arguments of `saccade_events`, the same for all images.

    Raises:
        InputError: Wrong images, labels or camera, or a folder that cannot be written.
    """
    root = Path(root)
    if len(images) != len(labels):
        raise InputError(f"labels: {len(labels)} for {len(images)} images; give one for each")
    if len(labels) and not 0 <= min(labels) <= max(labels) < len(class_names):
        raise InputError(
            f"labels: {min(labels)} to {max(labels)} for {len(class_names)} class names; give "
            "indices into class_names"
        )
    sensor_size = check_size("sensor_size", sensor_size)
    _describe(root, sensor_size)
    for label in set(labels):
        (root / split / class_names[label]).mkdir(parents=True, exist_ok=True)
    part = zlib.crc32(split.encode())
    progress_bar = tqdm(
        zip(images, labels, strict=True),
        desc=f"recording {split}",
        total=len(images),
        leave=False,
        disable=None if progress else True,
    )
    for i, (image, label) in enumerate(progress_bar):
        events = saccade_events(image, sensor_size=sensor_size, seed=(seed, part, i), **camera)
        write_events(root / split / class_names[label] / f"{i:05d}.npz", events)


def record_images(
    images: str | os.PathLike,
    out: str | os.PathLike,
    *,
    sensor_size: tuple[int, int] = (34, 34),
    test_fraction: float = 0.2,
    seed: int = 0,
    workers: int | None = None,
    **camera: Any,
) -> dict[str, int]:
    """Record a folder of images, one folder a class, as a data set that `EventFolder` reads.

    Colours become grey. Where the folder has ``train`` and ``test`` of its own, these are kept;
    else each class is split by image, which depends on the names and the seed. A recording is named
    after its image, and depends only on it, its path in the folder, the camera and the seed.

    Args:
        images: The folder, as torchvision's ``ImageFolder`` expects it.
        out: The data set's folder; appears complete or not at all.
        sensor_size: (height, width) in pixels.
        test_fraction: The share of test images in a new split, from 0 to below 1.
        seed: Of the split and of the sensor's pixels.
        workers: Processes; None takes one per core where there are many images.
        **camera: Other arguments of `saccade_events`, the same for all images.

    Returns:
        The number of recordings in each part.

    Raises:
        InputError: The folder holds no images in class folders, one cannot be read or gives no
            events, an argument is out of range, or ``out`` holds something already or cannot be
            written.
    """
    images, out = Path(images).expanduser(), Path(out).expanduser()
    sensor_size = check_size("sensor_size", sensor_size)
    if not 0 <= test_fraction < 1:
        raise InputError(f"test_fraction={test_fraction!r}: give a number from 0 to below 1")
    if seed < 0:
        raise InputError(f"seed={seed!r}: give a whole number from 0 on")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out}: holds something already; remove it or choose another folder")
    parts = _parts(images, test_fraction, seed)
    try:
        with atomic_folder(out) as folder:
            _describe(folder, sensor_size)
            jobs = []
            for part, classes in parts.items():
                for name, files in classes.items():
                    (folder / part / name).mkdir(parents=True)
                    jobs += [
                        (file, f"{part}/{name}/{i:05d}_{Path(file).stem}.npz")
                        for i, file in enumerate(files)
                    ]
            simulate_file = partial(
                _simulate_file, images, folder, sensor_size=sensor_size, seed=seed, **camera
            )
            recordings = ordered_map(simulate_file, jobs, what="recording", workers=workers)
            with contextlib.closing(recordings):
                for _ in recordings:
                    os.utime(folder)  # so that no other process takes it for abandoned
    except OSError as error:
        raise InputError(
            f"{out}: cannot be made ({error.strerror or error}); free some space, or choose "
            "another folder"
        ) from error
    return {part: sum(map(len, classes.values())) for part, classes in parts.items()}


def _describe(root: Path, sensor_size: tuple[int, int]) -> None:
    """Write dataset.json, which states the sensor's size."""
    description = {"sensor_size": list(sensor_size), "sensor": "simulated"}
    with atomic_write(root / "dataset.json") as file:
        file.write(json.dumps(description).encode())


def _parts(root: Path, test_fraction: float, seed: int) -> dict[str, Classes]:
    """List the images of a folder by part and class, drawing a split where it has none."""
    from torchvision.datasets.folder import IMG_EXTENSIONS

    found = scan(root, what="images", suffixes=IMG_EXTENSIONS)
    if "" not in found:
        return found
    if not test_fraction:
        return {"train": found[""]}
    if single := [name for name, files in found[""].items() if len(files) < 2]:
        raise InputError(
            f"{root}: class {single[0]!r} has a single image, so it cannot be in both train and "
            "test; add images of it, remove the class, or use test_fraction=0"
        )
    tests = choose_tests(root, found[""], test_fraction, seed)
    return {
        part: {
            name: tuple(file for file in files if (file in tests) == (part == "test"))
            for name, files in found[""].items()
        }
        for part in PARTS
    }


def _simulate_file(
    images: Path,
    out: Path,
    job: tuple[str, str],
    *,
    sensor_size: tuple[int, int],
    seed: int,
    **camera: Any,
) -> None:
    """Record one file; ``job`` holds its path in ``images`` and the recording's in ``out``."""
    file, target = job
    image = _read_image(images / file, sensor_size)
    key = zlib.crc32(file.encode())
    events = saccade_events(image, sensor_size=sensor_size, seed=(seed, key), **camera)
    if not len(events):
        raise InputError(
            f"{images / file}: gives no events, for it has no contrast; remove it, or lower the "
            "threshold"
        )
    write_events(out / target, events)


def _read_image(path: Path, sensor_size: tuple[int, int]) -> np.ndarray:
    """Read an image as grey values in [0, 1], not much larger than the sensor."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            image: Image.Image = ImageOps.exif_transpose(file)
            if image.mode.startswith("I;16"):
                # Pillow cuts 16 bits off at 255 where it converts them.
                image = Image.fromarray(np.asarray(image, np.float32) / 257)
            image = image.convert("F" if image.mode == "F" else "L")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(
            f"{path}: cannot be read as an image ({' '.join(str(error).split())}); remove it or "
            "convert it to PNG"
        ) from error
    height, width = sensor_size
    image.thumbnail((_DETAIL * width, _DETAIL * height))
    return np.clip(np.asarray(image, np.float64) / 255, 0, 1)
