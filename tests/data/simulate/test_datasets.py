"""Folders of images into data sets of recordings."""

import numpy as np
import pytest
from PIL import Image

from sj_ottt import InputError
from sj_ottt.cli.main import main
from sj_ottt.data import EventFolder, read_events, record_images, saccade_events
from sj_ottt.data.simulate import datasets


@pytest.fixture
def images(tmp_path):
    """Two classes of five images, in colour and in grey."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(("cat", "dog")):
        folder = tmp_path / "images" / name
        folder.mkdir(parents=True)
        for i in range(5):
            shape = (12, 10, 3) if label else (9, 14)
            image = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
            image.save(folder / f"{name}{i}.png")
    return tmp_path / "images"


def contents(root):
    return {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_a_folder_of_images_becomes_a_data_set(images, tmp_path):
    out = tmp_path / "events"
    counts = record_images(images, out, sensor_size=(20, 24), duration_us=60_000, noise_hz=5)
    assert counts == {"train": 8, "test": 2}
    train, test = (EventFolder(out, 4, split=s, cache_dir=tmp_path) for s in ("train", "test"))
    assert train.classes == ("cat", "dog") and train.frame_size == (20, 24)
    assert train.targets.tolist() == [0] * 4 + [1] * 4 and test.targets.tolist() == [0, 1]
    again = tmp_path / "again"
    record_images(images, again, sensor_size=(20, 24), duration_us=60_000, noise_hz=5, workers=2)
    assert contents(again) == contents(out)
    other = tmp_path / "other"
    record_images(images, other, sensor_size=(20, 24), duration_us=60_000, noise_hz=5, seed=1)
    assert contents(other) != contents(out)
    assert not list(tmp_path.glob(".*"))


def test_train_and_test_folders_are_kept_and_files_name_their_image(images, tmp_path):
    for part, names in (("train", ("cat", "dog")), ("test", ("cat",))):
        for name in names:
            target = tmp_path / "parted" / part / name
            target.mkdir(parents=True)
            for file in sorted((images / name).iterdir())[:2]:
                file.rename(target / file.name)
    out = tmp_path / "events"
    assert record_images(tmp_path / "parted", out) == {"train": 4, "test": 2}
    files = sorted(p.relative_to(out).as_posix() for p in out.rglob("*.npz"))
    assert files[:2] == ["test/cat/00000_cat2.npz", "test/cat/00001_cat3.npz"]
    assert len(files) == 6


def test_an_image_is_read_as_light(tmp_path):
    """Sixteen bits as eight, colours by their luminance, large images not larger than needed."""
    ramp = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    Image.fromarray(ramp).save(tmp_path / "a.png")
    Image.fromarray(ramp.astype(np.uint16) * 257).save(tmp_path / "b.png")
    Image.fromarray(np.repeat(ramp[..., None], 3, 2)).save(tmp_path / "c.png")
    for name in "abc":
        read = datasets._read_image(tmp_path / f"{name}.png", (34, 34))
        np.testing.assert_allclose(read, ramp / 255, atol=1e-6)
    Image.fromarray(np.tile(ramp, (100, 50))).save(tmp_path / "d.png")
    assert datasets._read_image(tmp_path / "d.png", (20, 30)).shape == (80, 40)


def test_the_camera_reaches_the_recording(images, tmp_path):
    camera = {"rounds": 1.5, "position": (2, -1), "leak_hz": 1, "threshold": 0.2}
    record_images(images, tmp_path / "out", test_fraction=0, **camera)
    recorded = read_events(tmp_path / "out" / "train" / "cat" / "00003_cat3.npz")
    image = np.asarray(Image.open(images / "cat" / "cat3.png"))
    seed = (0, datasets.zlib.crc32(b"cat/cat3.png"))
    assert np.array_equal(recorded, saccade_events(image, seed=seed, **camera))


def test_what_can_be_wrong_leaves_nothing(images, tmp_path, monkeypatch):
    out = tmp_path / "out"

    def refuses(words, folder=images, **kwargs):
        with pytest.raises(InputError, match=words):
            record_images(folder, out, **kwargs)
        assert not out.exists() and not list(tmp_path.glob(".*"))

    refuses("no such folder", tmp_path / "none")
    refuses("test_fraction=1", test_fraction=1)
    refuses("seed=-1", seed=-1)
    refuses("threshold=0", threshold=0)
    refuses("threshold=0", threshold=0, workers=2)
    blank = images / "dog" / "blank.png"
    Image.new("L", (5, 5)).save(blank)
    refuses(r"blank\.png: gives no events")
    blank.write_bytes(b"GIF89a no")
    refuses(r"blank\.png: cannot be read as an image", workers=2)
    blank.unlink()
    (images / "emu").mkdir()
    refuses("emu: class without images")
    Image.new("L", (5, 5)).save(images / "emu" / "one.png")
    refuses("class 'emu' has a single image")
    (tmp_path / "videos" / "a").mkdir(parents=True)
    (tmp_path / "videos" / "a" / "b.mp4").write_bytes(b"")
    refuses(r"no images in its 1 class folders \(found: 1 .mp4\)", tmp_path / "videos")

    written = []
    real = datasets.write_events

    def interrupted(path, events):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path)
        real(path, events)

    (images / "emu" / "one.png").unlink()
    (images / "emu").rmdir()
    monkeypatch.setattr(datasets, "write_events", interrupted)
    with pytest.raises(KeyboardInterrupt):
        record_images(images, out)
    assert len(written) == 3 and not out.exists() and not list(tmp_path.glob(".*"))
    out.mkdir()
    (out / "mine.txt").write_text("")
    with pytest.raises(InputError, match="holds something already"):
        record_images(images, out)
    assert [p.name for p in out.iterdir()] == ["mine.txt"]


def test_the_command(images, tmp_path, capsys):
    out = tmp_path / "events"
    argv = ["data", "simulate", str(images), "--out", str(out)]
    assert main([*argv, "--sensor-size", "16", "18", "--position", "1", "-2"]) == 0
    assert capsys.readouterr().out.startswith(
        "recorded  8 for train, 2 for test\ntrain     sj-ottt"
    )
    assert EventFolder(out, 2, cache_dir=tmp_path).sensor_size == (16, 18)
    assert main(argv) == 2
    assert "holds something already" in capsys.readouterr().err
