"""What a folder of recordings holds: its classes, its recordings, and which are for testing."""

import contextlib
import hashlib
import json
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from sj_ottt._files import atomic_write
from sj_ottt.data.recordings.label_table import is_table_of_labels
from sj_ottt.data.recordings.readers import recording_suffixes
from sj_ottt.errors import InputError

PARTS = ("train", "test")
# Which file of a sliced data set is which part of which recording.
SLICES = "slices.csv"
_SPLIT_VERSION = 1

# Recordings of each class, as posix paths relative to the root.
Classes = Mapping[str, tuple[str, ...]]


def digest(*values: object) -> str:
    """Return a short, stable key of JSON-able values."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def find_recordings(paths: Sequence[str | os.PathLike]) -> list[Path]:
    """List recordings: files as given, folders searched to any depth, each file once.

    Within folders, what is hidden, has an ending that no reader knows, is a table of labels, or
    belongs to a data set that was itself sliced from recordings is passed over.

    Raises:
        InputError: A path is missing, or a folder holds no recordings.
    """
    suffixes = recording_suffixes()
    found: dict[Path, Path] = {}
    for given in map(Path, paths):
        if given.is_dir():
            inside = sorted(p for p in given.rglob("*") if p.suffix.lower() in suffixes)
            inside = [p for p in inside if p.is_file() and not _is_passed_over(p, given)]
            inside = [p for p in inside if not is_table_of_labels(p)]
            if not inside:
                raise InputError(
                    f"{given}: holds no recordings; readable are {', '.join(suffixes)}"
                )
        elif given.exists():
            inside = [given]
        else:
            raise InputError(f"{given}: no such recording or folder; check the path")
        for path in inside:
            found.setdefault(path.resolve(), path)
    return list(found.values())


def scan(
    root: Path, *, what: str = "recordings", suffixes: Sequence[str] | None = None
) -> dict[str, Classes]:
    """List the recordings of a data set by part and class.

    Files with other endings, and hidden files and folders, are passed over.

    Args:
        root: A folder of classes, or one with ``train`` and/or ``test`` folders of classes.
        what: What messages call the files.
        suffixes: Their lower-case endings; None takes those of which some reader knows.

    Returns:
        ``{"train": ..., "test": ...}`` with those parts that exist, or ``{"": ...}`` where the
        folder has no parts.

    Raises:
        InputError: The folder is missing, holds no classes or no recordings, a class is empty, or
            one occurs only among the tests.
    """
    if not root.exists():
        raise InputError(f"{root}: no such folder; check the path")
    if not root.is_dir():
        raise InputError(f"{root}: not a folder; give the folder that holds the class folders")
    parts = [part for part in PARTS if (root / part).is_dir() and _folders(root / part)]
    suffixes = recording_suffixes() if suffixes is None else suffixes
    found = {part: _scan_classes(root, root / part, what, suffixes) for part in parts or [""]}
    if found.keys() == set(PARTS):
        _check_classes_of_tests(root, found["train"], found["test"])
    return found


def part_by_split(
    root: Path,
    classes: Classes,
    part: str,
    *,
    test_fraction: float,
    seed: int,
    cache_dir: Path,
) -> tuple[Classes, Path]:
    """Choose the recordings of one part by the data set's saved split, making one where needed.

    The split goes by recording, class by class, and depends only on the seed and the relative
    paths. Once saved it is kept: recordings added later belong to ``train``, and those that are
    gone are passed over. Delete the file for a new split.

    Args:
        root: The data set's folder; the split is saved there as ``split.json``.
        classes: All recordings.
        part: ``"train"`` or ``"test"``.
        test_fraction: The share of each class for testing; at least one recording.
        seed: Of the choice.
        cache_dir: Takes the file where ``root`` cannot be written.

    Returns:
        The part's recordings (classes without any are left out) and the split file.

    Raises:
        InputError: A class has a single recording, or the saved split is damaged or leaves a class
            without training data.
    """
    paths = (root / "split.json", cache_dir / f"split-{digest(str(root))}.json")
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        tests = choose_tests(root, classes, test_fraction, seed)
        path = _save_split(paths, classes, tests, test_fraction, seed)
    else:
        tests = _load_tests(path, test_fraction, seed)
    chosen = {
        "train": {name: tuple(f for f in fs if f not in tests) for name, fs in classes.items()},
        "test": {name: tuple(f for f in fs if f in tests) for name, fs in classes.items()},
    }
    chosen = {key: {name: fs for name, fs in kept.items() if fs} for key, kept in chosen.items()}
    _check_classes_of_tests(path, chosen["train"], chosen["test"])
    return chosen[part], path


def _is_passed_over(path: Path, searched: Path) -> bool:
    inner = path.relative_to(searched).parts
    folders = (searched.joinpath(*inner[:depth]) for depth in range(1, len(inner)))
    return any(part.startswith(".") for part in inner) or any(
        (folder / SLICES).exists() for folder in folders
    )


def _folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _scan_classes(root: Path, folder: Path, what: str, suffixes: Sequence[str]) -> Classes:
    if not (folders := _folders(folder)):
        raise InputError(
            f"{folder}: holds no class folders ({_inventory(folder.iterdir())}); put the "
            f"{what} of each class into a folder named after the class"
        )
    classes, others = {}, []
    for class_folder in folders:
        with os.scandir(class_folder) as entries:
            files = sorted(
                entry.name for entry in entries if entry.is_file() and entry.name[0] != "."
            )
        recordings = [name for name in files if Path(name).suffix.lower() in suffixes]
        prefix = class_folder.relative_to(root).as_posix()
        classes[class_folder.name] = tuple(f"{prefix}/{name}" for name in recordings)
        others += [class_folder / name for name in files if name not in recordings]
    readable = f"readable are {', '.join(suffixes)}"
    if not any(classes.values()):
        raise InputError(
            f"{folder}: no {what} in its {len(folders)} class folders ({_inventory(others)}); "
            f"{readable}: convert the {what} to one of these"
        )
    if empty := [class_folder for class_folder in folders if not classes[class_folder.name]]:
        found = _inventory(path for path in others if path.parent == empty[0])
        raise InputError(
            f"{empty[0]}: class without {what} ({found}; {readable}); add some or remove the folder"
        )
    return classes


def _inventory(paths: Iterable[Path]) -> str:
    """Return the endings of files and how many there are of each, for messages."""
    counts = Counter(path.suffix or "without ending" for path in paths if path.is_file())
    listed = ", ".join(f"{n} {suffix}" for suffix, n in counts.most_common(8))
    return f"found: {listed or 'no files'}"


def _check_classes_of_tests(source: Path, train: Classes, test: Classes) -> None:
    if extra := sorted(test.keys() - train.keys()):
        raise InputError(
            f"{source}: class {extra[0]!r} occurs in test but not in train; add recordings of it "
            "to train or remove it from test"
        )


def choose_tests(root: Path, classes: Classes, test_fraction: float, seed: int) -> set[str]:
    """Choose a share of each class for testing, by a hash of the seed and the paths alone.

    Raises:
        InputError: A class has a single recording.
    """
    tests: set[str] = set()
    for name, files in classes.items():
        if len(files) < 2:
            raise InputError(
                f"{root}: class {name!r} has a single recording, so it cannot be in both train and "
                "test; add recordings of it, remove the class, or use split=None"
            )
        shuffled = sorted(files, key=lambda file: digest(seed, file))
        n_tests = min(max(1, round(len(files) * test_fraction)), len(files) - 1)
        tests.update(shuffled[:n_tests])
    return tests


def _save_split(
    paths: Sequence[Path], classes: Classes, tests: set[str], test_fraction: float, seed: int
) -> Path:
    """Save the split at the first of ``paths`` that can be written, and return that one."""
    files = sorted(file for files in classes.values() for file in files)
    split = {
        "version": _SPLIT_VERSION,
        "seed": seed,
        "test_fraction": test_fraction,
        "train": [file for file in files if file not in tests],
        "test": [file for file in files if file in tests],
    }
    text = json.dumps(split, indent=1).encode()
    for path in paths[:-1]:
        with contextlib.suppress(InputError), atomic_write(path) as file:
            file.write(text)
            return path
    with atomic_write(paths[-1]) as file:
        file.write(text)
    return paths[-1]


def _load_tests(path: Path, test_fraction: float, seed: int) -> set[str]:
    try:
        split = json.loads(path.read_text(encoding="utf-8"))
        tests, made_with = split["test"], (split["seed"], split["test_fraction"])
        if split["version"] != _SPLIT_VERSION or not all(isinstance(f, str) for f in tests):
            raise ValueError("unknown version or entries")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{path}: damaged split file ({error}); restore it, or delete it for a new split"
        ) from error
    if made_with != (seed, test_fraction):
        warnings.warn(
            f"{path} was made with seed={made_with[0]} and test_fraction={made_with[1]}, and stays "
            "in force; delete it for a new split",
            stacklevel=2,
        )
    return set(tests)
