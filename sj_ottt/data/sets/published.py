"""Published event sets, unpacked by SpikingJelly's data set classes and read by `EventFolder`."""

from pathlib import Path
from typing import NamedTuple

from sj_ottt.errors import InputError

__all__ = ["EVENT_SETS", "EventSet", "event_set_root"]


class EventSet(NamedTuple):
    """A published set.

    Attributes:
        name: The class in `spikingjelly.datasets`.
        parts: Whether it comes with a train and a test part.
        test_fraction: The share of test recordings where it does not.
    """

    name: str
    parts: bool
    test_fraction: float = 0.1


EVENT_SETS = {
    "cifar10dvs": EventSet("CIFAR10DVS", parts=False),
    "dvs128gesture": EventSet("DVS128Gesture", parts=True),
    "nmnist": EventSet("NMNIST", parts=True),
    "ncaltech101": EventSet("NCaltech101", parts=False),
}


def event_set_root(kind: str, directory: Path) -> tuple[Path, tuple[int, int]]:
    """Return the folder of a set's recordings, unpacked on first use, and its sensor's size.

    Args:
        kind: A key of `EVENT_SETS`.
        directory: SpikingJelly's folder of the set: the downloaded files in ``download``, or the
            recordings already in ``events_np``.

    Raises:
        InputError: A downloaded file is missing or damaged, or an earlier unpacking was cut short.
    """
    import spikingjelly.datasets

    published = EVENT_SETS[kind]
    dataset = getattr(spikingjelly.datasets, published.name)
    downloads = directory / "download"
    if not (directory / "events_np").is_dir():
        # Looked for before the class does: without them it would leave a mark of unfinished work
        # behind, which stops every later try.
        for file, url, _ in dataset.resource_url_md5():
            if not (downloads / file).is_file():
                raise InputError(
                    f"{downloads / file}: missing; download {published.name} from {url} and "
                    f"put its files into {downloads}"
                )
    try:
        dataset(str(directory), **({"train": True} if published.parts else {}))
    except (RuntimeError, NotImplementedError, OSError, EOFError) as error:
        raise InputError(f"{directory}: {' '.join(str(error).split())}") from error
    return directory / "events_np", dataset.get_H_W()
