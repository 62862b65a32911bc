"""Folders of recordings: classes, split, cache, and everything that can be wrong with them."""

import json
import multiprocessing
import os
import pickle
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from sj_ottt import InputError
from sj_ottt.data import EVENT_DTYPE, EventFolder, open_dataset, read_events, write_events
from sj_ottt.data.sets import event_folder


def record(file, n=40, seed=0, size=(12, 10)):
    rng = np.random.default_rng(seed)
    table = np.zeros(n, EVENT_DTYPE)
    table["t"] = np.sort(rng.integers(0, 1000, n))
    table["y"], table["x"] = rng.integers(0, size[0], n), rng.integers(0, size[1], n)
    table["y"][0], table["x"][0] = size[0] - 1, size[1] - 1
    file.parent.mkdir(parents=True, exist_ok=True)
    write_events(file, table)


def described(root):
    (root / "dataset.json").write_text('{"sensor_size": [12, 10]}')
    return root


@pytest.fixture
def flat(tmp_path):
    """Two classes of 10 recordings, no split."""
    for i in range(20):
        record(tmp_path / "data" / f"class{i % 2}" / f"{i}.npz", seed=i)
    return described(tmp_path / "data")


@pytest.fixture
def parts(tmp_path):
    for i in range(6):
        record(
            tmp_path / "data" / ("test" if i < 2 else "train") / f"c{i % 2}" / f"{i}.npz", seed=i
        )
    return described(tmp_path / "data")


def open_(root, tmp_path, **kwargs):
    return EventFolder(root, 4, cache_dir=tmp_path / "own_cache", **kwargs)


def cache_files(tmp_path):
    return sorted((tmp_path / "own_cache" / "frames").glob("*.npy"))


def test_items_and_attributes(parts, tmp_path):
    data = open_(parts, tmp_path, split="train", transform=lambda f: f + 1)
    frames, label = data[0]
    assert frames.shape == (4, 2, 12, 10) and frames.dtype == torch.float32 and label == 0
    assert frames.sum() == 40 + frames.numel()
    assert (
        len(data) == 4 and data.classes == ("c0", "c1") and data.class_to_idx == {"c0": 0, "c1": 1}
    )
    assert data.targets.tolist() == [0, 0, 1, 1] and data.targets.dtype == np.int64
    assert data.files == ("train/c0/2.npz", "train/c0/4.npz", "train/c1/3.npz", "train/c1/5.npz")
    assert data.sensor_size == data.frame_size == (12, 10) and data.split_file is None
    assert json.loads(json.dumps(data.info()))["samples_per_class"] == {"c0": 2, "c1": 2}
    assert len(open_(parts, tmp_path)) == 6
    assert open_(parts, tmp_path, size=(5, 6), split="test")[0][0].shape == (4, 2, 5, 6)


def test_train_and_test_agree_on_the_sensor(parts, tmp_path):
    (parts / "dataset.json").unlink()
    record(parts / "test" / "c0" / "wide.npz", size=(15, 200))
    for _ in range(2):  # also where the size is known from the cache
        with pytest.warns(UserWarning, match=r"180 x 240 pixels .* --sensor-size H W .*\.json$"):
            assert open_(parts, tmp_path, split="train").frame_size == (180, 240)
    with pytest.raises(InputError, match=r"180 x 240 .*--strict takes none"):
        open_(parts, tmp_path, split="train", strict=True)
    assert open_(parts, tmp_path, sensor_size=(20, 220), strict=True).frame_size == (20, 220)
    (parts / "dataset.json").write_text('{"sensor_size": [16, 24]}')
    assert open_(parts, tmp_path, split="train").frame_size == (16, 24)
    (parts / "dataset.json").write_text("{}")
    with pytest.raises(InputError, match=r"dataset\.json"):
        open_(parts, tmp_path, split="train")


def test_split_is_stratified_saved_and_honoured(flat, tmp_path):
    train, test = (open_(flat, tmp_path, split=s) for s in ("train", "test"))
    assert len(train) == 16 and test.targets.tolist() == [0, 0, 1, 1]
    assert not set(train.files) & set(test.files)
    assert test.split_file == flat / "split.json"
    record(flat / "class0" / "new.npz", seed=99)
    (flat / train.files[0]).unlink()
    again = open_(flat, tmp_path, split="test")
    assert again.files == test.files
    assert "class0/new.npz" in open_(flat, tmp_path, split="train").files
    (flat / "split.json").unlink()
    shutil.rmtree(tmp_path / "own_cache")
    other = open_(flat, tmp_path, split="test", seed=5)
    assert other.files != test.files
    (flat / "split.json").write_text("{")
    with pytest.raises(InputError, match=r"split\.json: damaged"):
        open_(flat, tmp_path, split="test")


def test_split_depends_on_names_and_seed_only(flat, tmp_path):
    first = open_(flat, tmp_path, split="test").files
    copy = tmp_path / "elsewhere"
    shutil.copytree(flat, copy, ignore=shutil.ignore_patterns("split.json"))
    assert open_(copy, tmp_path, split="test").files == first


def test_cache_is_used_and_notices_changes(parts, tmp_path, monkeypatch):
    reads = []
    real = event_folder.read_events
    monkeypatch.setattr(
        event_folder, "read_events", lambda path, how: reads.append(path) or real(path, how)
    )
    (parts / "dataset.json").write_text('{"sensor_size": [12, 10]}')

    def opened():
        reads.clear()
        return open_(parts, tmp_path, split="train"), len(reads)

    first, n = opened()
    assert n == 4
    assert opened()[1] == 0
    record(parts / "train" / "c0" / "2.npz", seed=77)
    os.utime(parts / "train" / "c0" / "2.npz", ns=(1, 1))
    changed, n = opened()
    assert n == 4 and not torch.equal(changed[0][0], first[0][0])
    assert len(cache_files(tmp_path)) == 1  # the stale one is gone
    record(parts / "train" / "c0" / "9.npz")
    assert opened()[1] == 5
    (parts / "train" / "c0" / "9.npz").unlink()
    assert opened()[1] == 4
    for damage in (b"", b"x" * 100, cache_files(tmp_path)[0].read_bytes()[:-9]):
        cache_files(tmp_path)[0].write_bytes(damage)
        repaired, n = opened()
        assert n == 4 and torch.equal(repaired[0][0], changed[0][0])


def test_how_active_the_recordings_are(parts, tmp_path):
    """5%, 50% and 95% of the training recordings, also where the frames come from the cache."""
    files = sorted((parts / "train").rglob("*.npz"))
    rates, shares = [], []
    for i, file in enumerate(files):
        events = read_events(file)
        events["p"][: 10 * i] = 1
        write_events(file, events)
        rates.append(40 / (int(events["t"][-1] - events["t"][0]) / 1e6) / 120)
        shares.append(i / 4)
    for _ in range(2):
        found = open_(parts, tmp_path, split="train").activity
        assert found.rates == pytest.approx(tuple(np.quantile(rates, (0.05, 0.5, 0.95))))
        assert found.on_shares == pytest.approx(tuple(np.quantile(shares, (0.05, 0.5, 0.95))))
    (memo,) = (tmp_path / "own_cache" / "frames").glob("*.activity.json")
    memo.write_text("[")
    assert open_(parts, tmp_path, split="train").activity is None  # an older cache, or a lost file


def test_counts_above_a_byte(parts, tmp_path):
    table = np.zeros(1000, EVENT_DTYPE)
    table["x"], table["y"] = 9, 11
    write_events(parts / "train" / "c0" / "2.npz", table)
    assert open_(parts, tmp_path, split="train")[0][0].max() == 250
    assert EventFolder(parts, 1, split="train", cache_dir=tmp_path)[0][0].max() == 1000


def _open_in_process(root, cache, queue):
    queue.put(float(EventFolder(root, 4, split="train", cache_dir=cache).counts.sum()))


def test_two_processes_at_once(parts, tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    jobs = [
        context.Process(target=_open_in_process, args=(parts, tmp_path / "own_cache", queue))
        for _ in range(3)
    ]
    for job in jobs:
        job.start()
    assert [queue.get(timeout=60) for _ in jobs] == [160.0] * 3
    for job in jobs:
        job.join()
    assert len(cache_files(tmp_path)) == 1
    assert not list((tmp_path / "own_cache" / "frames").glob(".*"))


def test_surfaces_and_crops_are_cached_apart(parts, tmp_path):
    counts = open_(parts, tmp_path, split="train")
    surface = open_(parts, tmp_path, split="train", frames="surface", tau_us=300.0)
    assert surface.counts.dtype == np.uint8 and surface.info()["frames"] == "surface"
    frames, _ = surface[0]
    assert frames.dtype == torch.float32 and 0.5 < frames.max() <= 1
    assert torch.equal((frames * 255).round().byte(), torch.from_numpy(np.array(surface.counts[0])))
    other = open_(parts, tmp_path, split="train", frames="surface", tau_us=30.0)
    assert frames.sum() > other[0][0].sum() > 0
    cropped = open_(parts, tmp_path, split="train", crop=[6, 5])
    assert cropped.frame_size == (6, 5) and len(cache_files(tmp_path)) == 4
    assert cropped[0][0].sum() == counts[0][0][:, :, 3:9, 2:7].sum()
    # A size that says what is so anyway shares the file.
    open_(parts, tmp_path, split="train", size=(12, 10))
    assert len(cache_files(tmp_path)) == 4


@pytest.mark.slow
def test_the_cache_has_the_same_bytes_from_any_number_of_processes(parts, tmp_path):
    table = np.zeros(1000, EVENT_DTYPE)
    table["x"], table["y"] = 9, 11
    write_events(parts / "train" / "c1" / "5.npz", table)  # above a byte, near the end
    for workers in (0, 2, 3):
        cache = tmp_path / str(workers)
        data = EventFolder(parts, 4, split="train", cache_dir=cache, workers=workers)
        assert data.counts.dtype == np.uint8 and data.counts.max() == 250
        data = EventFolder(parts, 1, split="train", cache_dir=cache, workers=workers)
        assert data.counts.dtype == np.dtype("<u2") and data.counts.max() == 1000
        assert not list((cache / "frames").glob(".*"))
    files = [sorted((tmp_path / str(n) / "frames").iterdir()) for n in (0, 2, 3)]
    assert len(files[0]) == 4  # counts, and the recordings' activity
    for others in files[1:]:
        assert [p.name for p in others] == [p.name for p in files[0]]
        assert [p.read_bytes() for p in others] == [p.read_bytes() for p in files[0]]


def test_an_error_in_a_process_is_the_users_line(parts, tmp_path):
    backwards = np.zeros(9, EVENT_DTYPE)
    backwards["t"][:3] = 70_000
    write_events(parts / "train" / "c0" / "2.npz", backwards)
    messages = []
    for workers in (0, 2):
        with pytest.raises(InputError, match=r"train/c0/2\.npz: time runs backwards") as error:
            open_(parts, tmp_path, split="train", workers=workers, sensor_size=(12, 10))
        messages.append(str(error.value))
        assert not list((tmp_path / "own_cache" / "frames").iterdir())
    assert messages[0] == messages[1]


_frames = event_folder._frames


def _slow_frames(root, *args):
    time.sleep(0.2)
    (root.parent / f"worker-{os.getpid()}").touch()
    return _frames(root, *args)


def _build_slowly(root, cache):
    event_folder._frames = _slow_frames
    EventFolder(root, 4, split="train", sensor_size=(12, 10), cache_dir=cache, workers=2)


def test_a_killed_build_leaves_nothing_half_written_and_no_process(parts, tmp_path):
    for i in range(20):
        record(parts / "train" / "c0" / f"more{i}.npz", seed=i)
    cache = tmp_path / "own_cache"
    build = multiprocessing.get_context("fork").Process(target=_build_slowly, args=(parts, cache))
    build.start()
    deadline = time.monotonic() + 30
    while len(list(tmp_path.glob("worker-*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(build.pid, signal.SIGKILL)
    build.join()
    workers = [int(p.name.rpartition("-")[2]) for p in tmp_path.glob("worker-*")]
    assert len(workers) == 2
    assert not cache_files(tmp_path)
    (leftover,) = (cache / "frames").glob(".*")
    while any(map(_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(_alive, workers))
    os.utime(leftover, (1, 1))  # abandoned, an hour later
    data = EventFolder(parts, 4, split="train", sensor_size=(12, 10), cache_dir=cache, workers=2)
    assert data.counts.sum() == 24 * 40 and not list((cache / "frames").glob(".*"))


def _alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_workers_and_pickle(parts, tmp_path):
    data = open_(parts, tmp_path, split="train")
    assert torch.equal(pickle.loads(pickle.dumps(data))[1][0], data[1][0])
    assert len(pickle.dumps(data)) < 5000
    (frames, labels), *_ = DataLoader(data, 4, num_workers=1)
    assert frames.shape == (4, 4, 2, 12, 10) and labels.tolist() == [0, 0, 1, 1]


def test_what_can_be_wrong_with_a_folder(tmp_path, flat):
    def refuses(words, root, **kwargs):
        with pytest.raises(InputError, match=words) as error:
            open_(root, tmp_path, **kwargs)
        assert str(root) in str(error.value)
        assert not (tmp_path / "own_cache" / "frames").exists() or not list(
            (tmp_path / "own_cache" / "frames").glob(".*")
        )

    refuses("no such folder", tmp_path / "missing")
    (tmp_path / "file").write_text("")
    refuses("not a folder", tmp_path / "file")
    (tmp_path / "empty").mkdir()
    refuses("no class folders", tmp_path / "empty")
    (tmp_path / "other" / "a").mkdir(parents=True)
    (tmp_path / "other" / "a" / "x.avi").write_text("")
    refuses(r"found: 1 \.avi", tmp_path / "other")
    (flat / "class2").mkdir()
    refuses("class2: class without recordings", flat)
    record(flat / "class2" / "only.npz")
    refuses("class 'class2' has a single recording", flat, split="train")
    record(flat / "class2" / "only.npz", n=0 + 3)
    refuses("3 events cannot fill 4 frames", flat)
    shutil.rmtree(flat / "class2")
    (flat / "dataset.json").unlink()
    far = np.zeros(9, EVENT_DTYPE)
    far["x"][4] = 30_000
    write_events(flat / "class0" / "far.npz", far)
    refuses(r"class0/far\.npz: reaches out to x=30000", flat)
    (flat / "class0" / "far.npz").unlink()
    backwards = np.zeros(9, EVENT_DTYPE)
    backwards["t"][:3] = 70_000
    write_events(flat / "class0" / "bad.npz", backwards)
    refuses(r"class0/bad\.npz: time runs backwards at event 3", flat)


def test_wrong_arguments(flat, tmp_path):
    for kwargs, words in (
        ({"split": "val"}, "split='val'"),
        ({"split_by": "time"}, "split_by='time'"),
        ({"test_fraction": 1.0, "split": "train"}, "test_fraction=1.0"),
        ({"size": (0, 3)}, "size="),
        ({"crop": (13, 3)}, "crop="),
        ({"frames": "voxels"}, "frames='voxels'"),
        ({"sensor_size": (3, 3)}, "outside the sensor"),
    ):
        with pytest.raises(InputError, match=words):
            open_(flat, tmp_path, **kwargs)


def test_test_classes_must_be_trained(parts, tmp_path):
    record(parts / "test" / "c9" / "a.npz")
    with pytest.raises(InputError, match="class 'c9' occurs in test but not in train"):
        open_(parts, tmp_path, split="train")


def test_open_dataset_knows_its_names(flat, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="ndigits"):
        open_dataset("ndigit", split="train", steps=4)
    with pytest.raises(InputError, match="no such folder"):
        open_dataset("some/where", split="train", steps=4)
    assert len(open_dataset(str(flat), split=None, steps=4)) == 20


def test_real_recordings_as_somebodys_folder(nmnist, tmp_path):
    data = EventFolder(nmnist, 6, split="test", cache_dir=tmp_path)
    assert len(data) == 100 and data.classes == tuple("0123456789")
    assert data.frame_size == (34, 34)
    assert (data.counts.sum((2, 3, 4)) > 0).all()
