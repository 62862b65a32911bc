"""A data set by its name or path, whatever it holds."""

import os
from pathlib import Path
from typing import Any

from sj_ottt.data.sets.event_folder import EventFolder
from sj_ottt.data.sets.images import IMAGE_SETS, ImageSet, ImageStats, Transform
from sj_ottt.data.sets.ndigits import ndigits_root
from sj_ottt.data.sets.published import EVENT_SETS, event_set_root
from sj_ottt.errors import InputError, suggest

__all__ = ["EMBEDDED", "open_dataset"]

EMBEDDED = {"ndigits": ndigits_root}
"""Name of each embedded data set → what makes its folder."""


def open_dataset(
    spec: str | os.PathLike,
    *,
    split: str | None,
    steps: int,
    size: tuple[int, int] | None = None,
    stats: ImageStats | None = None,
    transform: Transform | None = None,
    cache_dir: str | os.PathLike | None = None,
    **options: Any,
) -> EventFolder | ImageSet:
    """Open a data set by its name, any folder of recordings by its path, or packed images.

    Args:
        spec: One of

            - ``"ndigits"``, the embedded recordings;
            - the path of a folder of recordings;
            - ``"nmnist:DIR"``, ``"dvs128gesture:DIR"``, ``"cifar10dvs:DIR"``,
              ``"ncaltech101:DIR"``: SpikingJelly's folder of that set;
            - ``"cifar10:DIR"``, ``"cifar100:DIR"``, ``"mnist:DIR"``, ``"fashionmnist:DIR"``,
              ``"imagenet:DIR"``, ``"folder:DIR"`` or the path of an ``.npz`` file: still images,
              see `ImageSet`.

            A folder that happens to have such a name is reached by a path with a separator
            (``./ndigits``) or a `pathlib.Path`.
        split: See `EventFolder`, as for all the rest.
        steps: T, frames per recording.
        size: (height, width) of the frames or images.
        stats: See `ImageSet`; recordings have none.
        transform: Applied to each sample.
        cache_dir: The cache's folder.
        **options: Further arguments of `EventFolder`: ``split_by`` and so on. They are about
            recordings, and still images pass over them.

    Raises:
        InputError: Neither a known name nor a folder, or something in the folder is wrong.
    """
    kind, colon, directory = spec.partition(":") if isinstance(spec, str) else ("", "", "")
    if (colon and kind in IMAGE_SETS) or _is_packed(spec):
        return ImageSet(str(spec), split, size=size, stats=stats, transform=transform)
    if colon and kind in EVENT_SETS:
        root, sensor_size = event_set_root(kind, Path(directory).expanduser())
        own = {"sensor_size": sensor_size, "test_fraction": EVENT_SETS[kind].test_fraction}
        options = {**own, **options}
    elif isinstance(spec, str) and spec in EMBEDDED:
        root = EMBEDDED[spec](cache_dir)
    elif isinstance(spec, str) and not Path(spec).exists() and (colon or Path(spec).name == spec):
        names = [*EMBEDDED, *(f"{name}:DIR" for name in (*EVENT_SETS, *IMAGE_SETS))]
        meant = suggest(f"{kind}:DIR" if colon else spec, names)
        raise InputError(
            f"data {spec!r}: no such data set or folder{meant}; give the path of a "
            f"folder of recordings, an npz file of images, or one of {', '.join(names)}"
        )
    else:
        root = Path(spec)
    return EventFolder(
        root, steps, size, split=split, transform=transform, cache_dir=cache_dir, **options
    )


def _is_packed(spec: str | os.PathLike) -> bool:
    return Path(spec).suffix.lower() == ".npz" and not Path(spec).is_dir()
