"""Recordings of another camera: which part is taken, that it is said, and what comes of it."""

import dataclasses
import warnings

import numpy as np
import pytest

from sj_ottt import InputError
from sj_ottt.cli.main import main
from sj_ottt.data import ReadOptions, open_recording, write_events
from sj_ottt.data.activity import Activity
from sj_ottt.data.recordings.label_table import labels_from_folders
from sj_ottt.data.recordings.source import Source
from sj_ottt.data.recordings.streams import WHOLE
from sj_ottt.inference.adapt import adapt
from sj_ottt.inference.camera import matching_box
from sj_ottt.inference.predict import label_stream, label_windows
from sj_ottt.run import evaluation
from tests.inference.recordings import WINDOW, band, long_recording
from tests.recording_files import dat


@pytest.mark.parametrize(
    ("own", "learned", "crop", "box"),
    [
        ((480, 640), (240, 320), None, None),
        ((260, 346), (480, 640), None, None),  # 0.3% from the same shape
        ((128, 128), (260, 346), None, (16, 0, 96, 128)),
        ((720, 1280), (480, 640), None, (0, 160, 720, 960)),
        ((480, 640), (128, 128), None, (0, 80, 480, 480)),
        # A box of the old sensor, at its place in the new one.
        ((480, 640), (240, 320), (10, 20, 30, 40), (20, 40, 60, 80)),
        ((480, 640), (240, 320), (200, 300), (40, 20, 400, 600)),
        ((720, 1280), (480, 640), (0, 0, 480, 640), (0, 160, 720, 960)),
        ((34, 34), (680, 680), (0, 0, 10, 10), (0, 0, 1, 1)),
    ],
)
def test_the_part_that_stands_for_what_was_seen(own, learned, crop, box):
    found = matching_box(own, learned, crop)
    assert found == box
    if found is not None:
        top, left, height, width = found
        assert min(top, left) >= 0 and top + height <= own[0] and left + width <= own[1]


def enlarged(events, factor, left=0):
    """The same scene before a sensor with ``factor`` times as many pixels a side."""
    large = events.copy()
    rng = np.random.default_rng(0)
    for name, offset in (("x", left), ("y", 0)):
        large[name] = offset + factor * events[name] + rng.integers(0, factor, len(events))
    return large


@pytest.mark.parametrize(
    ("sensor", "factor", "left", "part"),
    [((32, 32), 2, 0, "all of it is binned"), ((480, 640), 30, 80, "480 x 480 from row 0 and col")],
)
@pytest.mark.filterwarnings("ignore:.*events per second")
def test_another_sensor_is_said_and_gives_the_same_labels(trained, sensor, factor, left, part):
    events = long_recording([0, 2, 1])
    other = Source("x", [enlarged(events, factor, left)], sensor)
    same = Source("x", [events])
    for label in (
        lambda source, **kwargs: label_windows(trained, source, WINDOW, WINDOW, **kwargs),
        lambda source, **kwargs: label_stream(trained, source, WINDOW, **kwargs),
    ):
        words = rf"x: comes from a sensor of {sensor[0]} x .* of 16 x 16: .*{part}"
        with pytest.warns(UserWarning, match=words):
            found = list(label(other))
        assert found == list(label(same)) and len(found) >= 2
        with pytest.raises(InputError, match=r"of 16 x 16: take .*leave out --strict"):
            list(label(other, strict=True))
        assert list(label(same._replace(sensor_size=(16, 16)), strict=True)) == found


def test_a_smaller_sensor_leaves_gaps(trained):
    small = band(0)
    small["x"], small["y"] = small["x"] // 2, small["y"] // 2
    with pytest.warns(UserWarning, match=r"frames of 16 x 16 \(with gaps, as it has fewer pixels"):
        list(label_windows(trained, Source("x", [small], (8, 8)), WINDOW, WINDOW))


def test_rate_and_polarity_unlike_those_of_training_are_said(trained):
    assert isinstance(trained.info.activity, Activity)

    def said(events, model=trained):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            list(label_windows(model, Source("x", [events]), WINDOW, WINDOW))
        return [str(one.message) for one in found]

    assert said(band(0)) == []
    (text,) = said(band(0, n=4000))
    assert text.startswith("x: 156 events per second and pixel, 5")
    assert "where training had 9.4" in text
    on = band(0)
    on["p"] = 1
    (text,) = said(on)
    assert "100% of them ON, where training had" in text
    info = dataclasses.replace(trained.info, activity=None)  # a file from before that was kept
    assert said(on, dataclasses.replace(trained, info=info)) == []


@pytest.mark.filterwarnings("ignore:.*events per second")
def test_adapting_to_another_camera_makes_a_model_of_it(trained, tmp_path):
    folder = tmp_path / "session"
    for i in range(6):
        path = folder / ("left", "middle", "right")[i % 3] / f"{i}.dat"
        path.parent.mkdir(parents=True, exist_ok=True)
        events = enlarged(band(i % 3, seed=50 + i), 3, 9)
        path.write_bytes(dat(events.tolist(), "% Width 66\n% Height 48\n"))
    files = sorted(folder.rglob("*.dat"))
    labelled = labels_from_folders(files)
    cut = {"window": WHOLE, "stride": WHOLE}
    with pytest.raises(InputError, match="leave out --strict"):
        adapt(trained, labelled, **cut, read=ReadOptions(strict=True))
    with pytest.warns(UserWarning, match="comes from a sensor of 48 x 66") as said:
        result = adapt(trained, labelled, labelled[:2], **cut, lr=0.0, out=tmp_path / "adapted")
    assert result.before == result.after == 1.0 and result.right == 6
    assert sum("comes from" in str(one.message) for one in said) == 1  # not at each recording
    again = evaluation.load_trained(tmp_path / "adapted", "cpu")
    assert again.info.sensor_size == (48, 66) and again.info.frames.crop == (0, 9, 48, 48)
    assert again.info.frames.size == (16, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is this camera's now
        (one,) = label_windows(again, open_recording(files[0]), WHOLE, WHOLE, strict=True)
    assert one.label == "left"


def test_the_command_takes_the_sensor(run, tmp_path, capsys):
    path = tmp_path / "wide.npz"
    write_events(path, enlarged(band(1), 2))
    argv = ["predict", "--checkpoint", str(run), "--device", "cpu", str(path)]
    assert main(argv) == 2  # nothing states the sensor, and the model's own does not hold it
    assert "outside the sensor of height 16 and width 16" in capsys.readouterr().err
    with pytest.warns(UserWarning, match="comes from a sensor of 32 x 32"):
        assert main([*argv, "--sensor-size", "32", "32"]) == 0
    assert "middle" in capsys.readouterr().out
    assert main([*argv, "--sensor-size", "32", "32", "--strict"]) == 2
    assert "comes from a sensor of 32 x 32" in capsys.readouterr().err
