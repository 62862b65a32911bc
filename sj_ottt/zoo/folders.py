"""Folders of weights: which there are, what each holds, and how weights are put into one."""

import hashlib
import json
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sj_ottt._files import atomic_write, cache_root, only_writer
from sj_ottt.errors import InputError, suggest

__all__ = [
    "WEIGHTS_LIMIT",
    "ZooEntry",
    "add_to_zoo",
    "all_entries",
    "check_tag",
    "entry_named",
    "own_folder",
    "registered_entries",
    "shipped_folder",
    "zoo_entries",
]

WEIGHTS_LIMIT = 90_000_000
"""Bytes of all weights that ship: package indexes take wheels of up to 100 MB."""

_PACKAGE = Path(__file__).parents[1]
_MANIFEST = "manifest.json"
_MANIFEST_LIMIT = 16_000_000  # bytes; a row with a thousand class names takes 20,000
_REMEDY = "free some space, or choose another folder"
_NAME = re.compile(r"[a-z][a-z0-9_]*\.[A-Za-z0-9][A-Za-z0-9_-]*")
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
# The fields of timm's configuration that a row may have; none of them says where a file is.
_FIELDS = {
    *("input_size", "pool_size", "num_classes", "label_names", "mean", "std", "crop_pct"),
    *("interpolation", "license"),
}

_OPTIONS = {"readout"}  # that a row may have, texts


@dataclass(frozen=True)
class ZooEntry:
    """One set of weights.

    Attributes:
        name: `arch.tag`.
        folder: Its zoo.
        sha256: Of its file.
        cfg: Fields of timm's pretrained configuration.
        options: Arguments that its network is built with, where they are not the default ones.
    """

    name: str
    folder: Path
    sha256: str
    cfg: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def file(self) -> Path:
        """Its weights."""
        return self.folder / f"{self.name}.safetensors"

    @property
    def card(self) -> Path:
        """The text that describes it."""
        return self.folder / f"{self.name}.md"

    @property
    def arch(self) -> str:
        """The name of its architecture."""
        return self.name.partition(".")[0]

    @property
    def tag(self) -> str:
        """What tells it from other weights of the architecture."""
        return self.name.partition(".")[2]

    def check_file(self) -> None:
        """Check that the file is there, is no link, and is the one that was put there.

        Raises:
            InputError: It is not.
        """
        restore = "put it there again"
        if self.folder == shipped_folder():
            restore = "restore it (reinstall sj-ottt, or git checkout model_zoo)"
        elif self.file.is_symlink():
            raise InputError(f"{self.file} is a link: put the file itself there")
        if not self.file.is_file():
            raise InputError(f"{self.file}: no such weight file; {restore}")
        with open(self.file, "rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
        if found != self.sha256:
            raise InputError(
                f"{self.file}: the SHA-256 differs from the manifest's, so the file was changed "
                f"or truncated; {restore}"
            )


def shipped_folder() -> Path:
    """Return the zoo that ships: inside an installed package, beside it in a checkout."""
    installed = _PACKAGE / "model_zoo"
    return installed if installed.is_dir() else _PACKAGE.parent / "model_zoo"


def own_folder(folder: str | os.PathLike | None = None) -> Path:
    """Return the user's zoo (it may not exist yet).

    Args:
        folder: A folder chosen by the caller; else the environment variable ``SJ_OTTT_ZOO``
            decides, else it is ``zoo`` in the cache (``~/.cache/sj_ottt``, or ``SJ_OTTT_CACHE``).
    """
    chosen = folder or os.environ.get("SJ_OTTT_ZOO") or cache_root() / "zoo"
    return _absolute(Path(chosen))


def _absolute(folder: Path) -> Path:
    return Path(os.path.abspath(folder.expanduser()))  # also without ..


def zoo_entries(folder: Path) -> dict[str, ZooEntry]:
    """Return the entries of a zoo by name; none where the folder is no zoo, or not there.

    Raises:
        InputError: Its manifest cannot be read, or says what a manifest cannot say.
    """
    file = folder / _MANIFEST
    try:
        if file.stat().st_size > _MANIFEST_LIMIT:
            raise ValueError(f"larger than {_MANIFEST_LIMIT // 1_000_000} MB")
        rows = json.loads(file.read_text(encoding="utf-8"))
        return {name: _entry(name, folder, row) for name, row in rows.items()}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, RecursionError, AttributeError, TypeError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{file} is not the manifest of a zoo ({reason}); restore it, or choose another folder"
        ) from error


def _entry(name: str, folder: Path, row: Mapping[str, Any]) -> ZooEntry:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no arch.tag")
    cfg, sha256 = row["cfg"], row["sha256"]
    if unknown := sorted(cfg.keys() - _FIELDS):
        raise ValueError(f"{name} has a field {unknown[0]!r}")
    channels, height, width = cfg["input_size"]
    sizes = (channels, height, width, cfg["num_classes"])
    if not all(isinstance(n, int) and n > 0 for n in sizes) or not isinstance(sha256, str):
        raise ValueError(f"{name} has no valid sha256, input_size and num_classes")
    options = dict(row.get("options", {}))
    for option, value in options.items():
        if option not in _OPTIONS or not isinstance(value, str):
            raise ValueError(f"{name} has an option {option}={value!r}")
    return ZooEntry(name, folder, sha256, cfg, options)


def _row(entry: ZooEntry) -> dict[str, Any]:
    options = {"options": dict(entry.options)} if entry.options else {}
    return {"sha256": entry.sha256, "cfg": entry.cfg, **options}


def all_entries(own: str | os.PathLike | None = None) -> dict[str, ZooEntry]:
    """Return the entries of the zoo that ships and of the user's; the former first.

    Args:
        own: As in `own_folder`.

    Raises:
        InputError: A manifest cannot be read.
    """
    shipped, user = zoo_entries(shipped_folder()), own_folder(own)
    return shipped | {k: v for k, v in zoo_entries(user).items() if k not in shipped}


def registered_entries() -> dict[str, ZooEntry]:
    """Return what `all_entries` does; a user's zoo that is damaged is passed over with a word."""
    try:
        return all_entries()
    except InputError as error:
        warnings.warn(f"the user's zoo is passed over: {error}", stacklevel=2)
        return zoo_entries(shipped_folder())


def entry_named(name: str, own: str | os.PathLike | None = None) -> ZooEntry:
    """Return the entry of a name, `arch.tag`; without a tag, the first of the architecture.

    Args:
        name: The name.
        own: As in `own_folder`.

    Raises:
        InputError: There is none.
    """
    entries = all_entries(own)
    found = [e for e in entries.values() if name in (e.name, e.arch)]
    if not found:
        raise InputError(
            f"there are no weights {name!r}{suggest(name, entries)}; see `sj-ottt zoo list`"
        )
    return found[0]


def check_tag(tag: str) -> None:
    """Check a tag, which becomes part of a file's name.

    Raises:
        InputError: It has other characters than letters, digits, `_` and `-`.
    """
    if not _TAG.fullmatch(tag):
        raise InputError(f"tag={tag!r}: give letters, digits, _ and -, such as ottt_a_in1k")


def add_to_zoo(
    folder: Path,
    name: str,
    data: bytes,
    card: str,
    cfg: Mapping[str, Any],
    *,
    options: Mapping[str, Any] | None = None,
    replace: bool = False,
) -> ZooEntry:
    """Put weights into a zoo: the file, its card, and last the row of the manifest.

    Args:
        folder: The zoo; made where it is missing.
        name: `arch.tag`.
        data: The content of the safetensors file.
        card: The text of the card, with ``{sha256}`` where the digest belongs.
        cfg: Fields of timm's pretrained configuration.
        options: Arguments that their network is built with, where they are not the default ones.
        replace: Put them in the place of weights of the same name.

    Raises:
        InputError: The name is no name, or taken; the folder cannot be written, holds a link of
            that name, or another process is writing to it.
    """
    _, _, tag = name.partition(".")
    check_tag(tag)
    folder = _absolute(folder)
    if folder != shipped_folder() and name in zoo_entries(shipped_folder()):
        raise InputError(f"tag={tag!r}: {name} ships with the package; choose another tag")
    sha256 = hashlib.sha256(data).hexdigest()
    made = _entry(name, folder, {"cfg": cfg, "sha256": sha256, "options": options or {}})
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made ({error.strerror}); {_REMEDY}") from error
    with only_writer(folder):
        entries = zoo_entries(folder)
        links = [path for path in (made.file, made.card, folder / _MANIFEST) if path.is_symlink()]
        if links:
            raise InputError(f"{links[0]} is a link: remove it, or choose another folder or tag")
        if not replace and (name in entries or made.file.exists() or made.card.exists()):
            raise InputError(
                f"tag={tag!r}: {folder} has a {name} already; choose another tag, or replace it "
                "(--replace)"
            )
        rows = {k: _row(entry) for k, entry in (entries | {name: made}).items()}
        manifest = json.dumps(rows, indent=2) + "\n"
        for path, content in (
            (made.file, data),
            (made.card, card.replace("{sha256}", sha256).encode()),
            (folder / _MANIFEST, manifest.encode()),
        ):
            with atomic_write(path, remedy=_REMEDY) as file:
                file.write(content)
    return made
