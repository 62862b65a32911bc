"""Where derived files live, and how they are written so that no half-written one is ever seen."""

import contextlib
import glob
import os
import re
import secrets
import shutil
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from sj_ottt.errors import InputError

# A temporary file or folder untouched for this long belongs to a process that was killed.
ABANDONED_AFTER_S = 3600


def cache_root(cache_dir: str | os.PathLike | None = None) -> Path:
    """Return the folder of all files that can be made again (it may not exist yet).

    Args:
        cache_dir: A folder chosen by the caller; else the environment variable ``SJ_OTTT_CACHE``
            decides, else it is ``~/.cache/sj_ottt``.
    """
    chosen = cache_dir or os.environ.get("SJ_OTTT_CACHE") or Path.home() / ".cache" / "sj_ottt"
    return Path(chosen).expanduser()


def temporary_sibling(path: Path) -> Path:
    """Name a hidden, unused path beside ``path``, so that a rename onto it is atomic."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


def final_name(temporary: Path) -> str | None:
    """Return the name that a `temporary_sibling` was to get; None for any other path."""
    found = re.fullmatch(r"\.(.+)\.\d+-[0-9a-f]{8}\.tmp", temporary.name, re.DOTALL)
    return found and found[1]


def abandoned_siblings(path: Path) -> list[Path]:
    """List the temporary siblings of ``path`` that killed processes have left."""
    found = []
    for sibling in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        if final_name(sibling) != path.name:
            continue
        with contextlib.suppress(FileNotFoundError):
            if time.time() - sibling.stat().st_mtime > ABANDONED_AFTER_S:
                found.append(sibling)
    return found


@contextlib.contextmanager
def atomic_write(
    path: Path,
    *,
    durable: bool = True,
    remedy: str = (
        "free some space, or choose another folder (cache_dir or the environment variable "
        "SJ_OTTT_CACHE for caches)"
    ),
) -> Iterator[BinaryIO]:
    """Open a file for writing that appears at ``path`` complete, or not at all.

    Args:
        path: Where the file is to appear; its folder is made where it is missing.
        durable: Wait until the bytes and the new name are on the disk, so that a power cut leaves
            the old file or the new one.
        remedy: What the user can do where the file cannot be written.

    Raises:
        InputError: The folder cannot be written or the disk is full; the old file is untouched
            and nothing is left behind.
    """
    temporary = temporary_sibling(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
        if durable:
            _sync_folder(path.parent)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror or error}); {remedy}"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def atomic_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a hidden folder to fill, which appears at ``path`` complete, or not at all.

    Where filling it takes long, touch the folder now and then (``os.utime``): after an hour
    (`ABANDONED_AFTER_S`) another process takes it for a killed process's, and removes it.

    Args:
        path: Where the folder is to appear.
        replace: Put it in the place of a folder that is there; until then, the old one stays.

    Raises:
        OSError: The folder cannot be made, or ``path`` is a file, or a folder that is not empty and
            not to be replaced.
    """
    for leftover in abandoned_siblings(path):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary, old = temporary_sibling(path), temporary_sibling(path)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        with contextlib.suppress(OSError):  # not empty, or not there
            path.rmdir()  # Windows renames onto no folder, not even onto an empty one
        if replace and path.is_dir():
            os.rename(path, old)
        try:
            os.rename(temporary, path)
        except OSError:
            if old.exists():
                os.rename(old, path)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if path.exists():  # or the old folder, hidden, is all that is left
            shutil.rmtree(old, ignore_errors=True)


def is_stored(path: Path) -> bool:
    """Whether a file is a zip archive of files as they are, none of which unpacks to more."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return False
    stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
    return stored and sum(member.file_size for member in members) <= path.stat().st_size


def refuse_compressed(path: Path) -> None:
    """Refuse a file of `torch.save` that may unpack to any size.

    Raises:
        InputError: It is an archive of compressed files.
    """
    if zipfile.is_zipfile(path) and not is_stored(path):
        raise InputError(
            f"{path}: is compressed, which torch.save does not do, and may unpack to any size; "
            "save the weights anew"
        )


# The handles of the locks that this process holds.
_held: set[int] = set()


def _let_go_in_child() -> None:
    """Close the locks that a fork inherits, or it would hold them when its parent has died."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_child)


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Keep other processes from writing to a folder meanwhile; one that died keeps nobody out.

    Raises:
        InputError: Another process writes to it.
    """
    try:
        handle = _lock(folder)
    except BlockingIOError as error:
        raise InputError(
            f"{folder}: another process is writing to it; wait until it has ended, stop it, or "
            "choose another folder"
        ) from error
    if handle is not None:
        _held.add(handle)
    try:
        yield
    finally:
        if handle in _held:  # and this is no child of the process that locked it
            _held.remove(handle)
            os.close(handle)


def _lock(folder: Path) -> int | None:
    """Lock a folder until what is returned is closed; `BlockingIOError` where another has it."""
    try:
        import fcntl
    except ImportError:  # Windows, which opens no folder: a file in it stands for it
        import msvcrt

        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except OSError as error:
            os.close(handle)
            raise BlockingIOError(error.errno, error.strerror) from error
        return handle
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise
    except OSError:  # some network file systems know no locks
        os.close(handle)
        return None
    return handle


def _sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, where the system can tell."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return  # Windows opens no folder, and keeps its names safe by itself
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
