"""Files appear complete or not at all, on systems that open no folders too."""

import multiprocessing
import os
import time
from pathlib import Path

import pytest

from sj_ottt import InputError
from sj_ottt._files import (
    abandoned_siblings,
    atomic_folder,
    atomic_write,
    final_name,
    only_writer,
    temporary_sibling,
)
from sj_ottt.data.recordings import streams
from sj_ottt.run.checkpoint import remove_leftovers

FORKING = multiprocessing.get_context("fork") if hasattr(os, "fork") else None


@pytest.fixture
def windows(monkeypatch):
    """A system that opens no folder, and renames nothing that is open or onto a folder."""
    is_open, rename, replace = os.open, os.rename, os.replace
    opened = []

    def open_file(path, flags, *args, **kwargs):
        if "dir_fd" not in kwargs and Path(path).is_dir():  # rmtree, which gives it, has other ways
            opened.append(path)
            raise PermissionError(13, "Permission denied", str(path))
        return is_open(path, flags, *args, **kwargs)

    def closed(path) -> None:
        held = {os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")}
        if os.path.realpath(path) in held:
            raise PermissionError(13, "The process cannot access the file", str(path))

    def rename_new(source, target):
        if Path(target).exists():
            raise FileExistsError(17, "File exists", str(target))
        rename(source, target)

    monkeypatch.setattr(os, "open", open_file)
    monkeypatch.setattr(os, "rename", rename_new)
    monkeypatch.setattr(os, "replace", lambda a, b: closed(a) or replace(a, b))
    monkeypatch.delattr(os, "pread")
    return opened


def test_writes_where_folders_cannot_be_opened(windows, tmp_path):
    path = tmp_path / "new" / "file.bin"
    for text in (b"one", b"two"):
        with atomic_write(path) as file:
            file.write(text)
        assert path.read_bytes() == text and os.listdir(path.parent) == ["file.bin"]
    assert windows  # a folder was asked for


def test_a_folder_appears_where_an_empty_one_is(windows, tmp_path):
    for name, ready in (("new", False), ("empty", True)):
        path = tmp_path / name
        if ready:
            path.mkdir()
        with atomic_folder(path) as folder:
            (folder / "a").write_bytes(b"1")
        assert os.listdir(path) == ["a"]
    with pytest.raises(OSError), atomic_folder(path) as folder:
        (folder / "b").write_bytes(b"2")
    assert os.listdir(path) == ["a"] and sorted(os.listdir(tmp_path)) == ["empty", "new"]


def test_a_folder_that_syncs_badly_is_an_error(monkeypatch, tmp_path):
    def fail(handle):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(InputError, match="Input/output error"), atomic_write(tmp_path / "a"):
        pass


def test_leftovers_of_a_name_with_brackets_are_found(tmp_path):
    path = tmp_path / "run[1].npz"
    left = tmp_path / ".run[1].npz.1-0123abcd.tmp"
    for file in (left, tmp_path / ".run[1].npz.mine.tmp"):
        file.touch()
        os.utime(file, (0, 0))
    assert abandoned_siblings(path) == [left]
    assert final_name(temporary_sibling(path)) == path.name


def test_a_run_removes_its_own_leftovers_only(tmp_path):
    own = [".last.pt.1-0123abcd.tmp", ".not_finite.jsonl.1.1-0123abcd.tmp"]
    others = [".notes.tmp", ".last.pt.tmp", ".samples.h5.1-0123abcd.tmp"]
    for name in (*own, *others):
        (tmp_path / name).touch()
    (tmp_path / ".best.safetensors.1-0123abcd.tmp").mkdir()
    remove_leftovers(tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {*others, ".best.safetensors.1-0123abcd.tmp"}


def stay(begun) -> None:
    begun.set()
    time.sleep(60)


@pytest.mark.skipif(FORKING is None, reason="this system does not fork")
def test_a_child_does_not_hold_its_parents_lock(tmp_path):
    """A process that loads outlives a killed run by seconds."""
    with only_writer(tmp_path):
        begun = FORKING.Event()
        child = FORKING.Process(target=stay, args=(begun,))
        child.start()
        assert begun.wait(30)
        with pytest.raises(InputError, match="another process"), only_writer(tmp_path):
            pass
    try:
        with only_writer(tmp_path):
            assert child.is_alive()
    finally:
        child.kill()
        child.join()


def test_a_growing_text_is_read_from_its_start(windows, tmp_path):
    path = tmp_path / "events.txt"
    path.write_text("0 1 2 1\n5 3 4 0\n", encoding="utf-8")
    pieces = [piece for piece in streams.follow(path, idle=0).chunks if len(piece)]
    assert pieces[0]["x"].tolist() == [1, 3]
