"""Labels of recordings and of streams, window by window, and the state that a stream keeps."""

import dataclasses
import io
import os
import threading
import time

import numpy as np
import pytest
import torch

from sj_ottt import InputError
from sj_ottt.cli.main import main
from sj_ottt.data import EventFolder, NormalizeFrames, open_recording, write_events
from sj_ottt.data.recordings import streams
from sj_ottt.data.recordings.streams import WHOLE
from sj_ottt.inference import predict as predict_module
from sj_ottt.inference.camera import fit_source
from sj_ottt.inference.predict import (
    durations,
    fewest_events,
    label_stream,
    label_windows,
)
from sj_ottt.learning import predict, reset_state
from sj_ottt.run import evaluation
from tests.helpers import CLASSES
from tests.inference.recordings import WINDOW, as_text, band, long_recording
from tests.recording_files import dat

# Labels of windows


@pytest.mark.slow
def test_label_windows_is_predict_on_each_window(trained, tmp_path):
    labels = [0, 2, 1, 2] * 9  # more than a batch
    events = long_recording(labels)
    path = tmp_path / "long.npz"
    write_events(path, events)
    found = list(label_windows(trained, open_recording(path), WINDOW, WINDOW))
    assert [CLASSES.index(one.label) for one in found] == labels
    assert [one.start for one in found] == [i * WINDOW for i in range(36)]
    # The same numbers as the data set of those windows gives.
    write_events(tmp_path / "set" / "c" / "1.npz", events[240:480])
    data = EventFolder(
        tmp_path / "set", 3, (16, 16), sensor_size=(16, 16), transform=NormalizeFrames()
    )
    logits = predict(trained.model, data[0][0][:, None])[0] / 3
    assert found[1].confidence == pytest.approx(logits.softmax(0).max().item(), abs=1e-6)
    assert found[1].end - found[1].start == WINDOW and found[1].events == 240
    # Overlapping windows.
    half = list(label_windows(trained, open_recording(path), WINDOW, WINDOW // 2))
    assert half[::2] == found and len(half) == 71


def test_windows_with_too_few_events_get_no_label(trained):
    events = long_recording([0, 1, 2])
    events = events[(events["t"] < WINDOW) | (events["t"] >= 2 * WINDOW) | (events["x"] == 3)]
    source = streams.Source("test", [events])
    few = [one.events for one in label_windows(trained, source, WINDOW, WINDOW)][1]
    found = list(label_windows(trained, source, WINDOW, WINDOW, min_events=few + 1))
    assert [one.label for one in found] == ["left", None, "right"] and found[1].confidence == 0
    two = streams.Source("test", [np.concatenate([events[:240], band(1, 2, begin=WINDOW)])])
    assert next(label_windows(trained, two, 2 * WINDOW, WINDOW)).label == "left"


# Streams


def test_a_stream_keeps_its_membranes(trained):
    events = long_recording([0, 0, 1, 1, 2, 2])
    found = list(label_stream(trained, streams.Source("test", [events]), WINDOW))
    step = WINDOW // 3
    model, expected = trained.model.eval(), []
    outputs = []
    for k in range(6 * WINDOW // step):
        part = events[(events["t"] >= k * step) & (events["t"] < (k + 1) * step)]
        frame = torch.zeros(2, 16, 16)
        for _, x, y, p in part.tolist():
            frame[p, y, x] += 1
        if (k + 1) * step <= events["t"][-1] + 1:
            with torch.no_grad():
                outputs.append(model(NormalizeFrames()(frame)[None])[0])
            if len(outputs) % 3 == 0:
                expected.append((sum(outputs[-3:]) / 3).softmax(0))
    assert len(found) == len(expected) >= 5
    for one, shares in zip(found, expected, strict=True):
        assert one.label == CLASSES[int(shares.argmax())]
        assert one.confidence == pytest.approx(shares.max().item(), abs=1e-5)
    # State from window to window: the same windows, each on its own, are less or more sure.
    alone = [
        next(label_stream(trained, streams.Source("x", [events[240 * i :]]), WINDOW))
        for i in range(1, 4)
    ]
    assert any(
        abs(a.confidence - b.confidence) > 1e-4 for a, b in zip(alone, found[1:], strict=False)
    )


def test_a_stream_starts_anew_after_a_silent_window(trained):
    later = np.concatenate([band(2, begin=50 * WINDOW), band(2, begin=51 * WINDOW)])
    events = np.concatenate([band(0), later])
    reset = []
    with pytest.MonkeyPatch.context() as patch:
        real = reset_state
        patch.setattr(
            "sj_ottt.inference.predict.reset_state", lambda model: reset.append(1) or real(model)
        )
        found = list(label_stream(trained, streams.Source("x", [events]), WINDOW))
    assert found[0].label == "left" and found[-1].label == "right"
    assert all(one.label is None for one in found[2:49]) and len(reset) > 100


def test_a_stream_whose_clock_starts_anew_is_labelled_at_once_and_afresh(trained):
    """As where a camera is plugged in again, or a packet comes late."""
    before, after = long_recording([0, 1, 2]), long_recording([2, 0])
    source = streams.Source("camera", [before[:-40], after])
    with pytest.warns(UserWarning) as said:
        found = list(label_stream(trained, source, WINDOW))
    assert [one.label for one in found] == ["left", "middle", "right", "left"]
    assert [one.start for one in found] == [0, 99_999, 0, 99_999]
    assert found[2:] == list(label_stream(trained, streams.Source("x", [after]), WINDOW))
    (text,) = (str(one.message) for one in said if "runs back" in str(one.message))
    assert "camera: time runs back by 0.28" in text
    left_out = len(before) - 40 - found[0].events - found[1].events
    assert f"; {left_out} events before it" in text
    with pytest.raises(InputError, match="camera: time runs backwards by"):
        list(label_stream(trained, source, WINDOW, strict=True))


def test_memory_of_a_stream_does_not_grow(trained, monkeypatch):
    def endless(n):
        for i in range(n):
            yield band(i % 3, begin=i * WINDOW, seed=i)

    sizes = []
    real = streams.windows

    def watched(chunks, length, stride):
        for start, end, events in real(chunks, length, stride):
            sizes.append(0 if events.base is None else len(events.base))
            yield start, end, events

    monkeypatch.setattr("sj_ottt.inference.predict.windows", watched)
    found = label_stream(trained, streams.Source("x", endless(60)), WINDOW)
    assert sum(1 for _ in found) >= 59
    assert max(sizes) <= 3 * 240


@pytest.mark.slow
def test_follow_a_growing_file(trained, tmp_path):
    path = tmp_path / "grows.csv"
    events = long_recording([0, 2, 1])
    text = as_text(events)
    path.write_bytes(b"t,x,y,p\n")

    def write():
        with open(path, "ab", buffering=0) as file:
            for i in range(0, len(text), 1111):  # lines torn anywhere
                file.write(text[i : i + 1111])
                time.sleep(0.01)

    writer = threading.Thread(target=write)
    writer.start()
    found = np.concatenate(list(streams.follow(path, idle=1.0).chunks))
    writer.join()
    assert np.array_equal(found, events)
    found = list(label_stream(trained, streams.follow(path, idle=0), WINDOW))
    assert [one.label for one in found][:2] == ["left", "right"]


def test_standard_input(trained, monkeypatch):
    reader, writer = os.pipe()
    events = long_recording([1, 0])
    os.write(writer, as_text(events)[:60_000])
    os.close(writer)
    with os.fdopen(reader, "rb") as stdin:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(stdin))
        found = np.concatenate(list(streams.follow("-").chunks))
    assert np.array_equal(found, events)


@pytest.mark.parametrize("writers", [0, 1])
def test_idle_ends_a_pipe_whose_writer_is_silent_or_missing(writers, tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    source = streams.follow(path, idle=0.2)
    began = time.monotonic()
    events = long_recording([1])
    if writers:
        with open(path, "wb", buffering=0) as writer:
            writer.write(as_text(events))
            found = np.concatenate(list(source.chunks))
        assert np.array_equal(found, events)
    else:
        assert not any(map(len, source.chunks))
    assert 0.2 <= time.monotonic() - began < 5


def test_idle_ends_standard_input_that_stays_open(monkeypatch):
    reader, writer = os.pipe()
    events = long_recording([1])
    with open(writer, "wb", buffering=0) as source, os.fdopen(reader, "rb") as stdin:
        source.write(as_text(events))
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(stdin))
        found = np.concatenate(list(streams.follow("-", idle=0.2).chunks))
        assert np.array_equal(found, events)
        assert os.get_blocking(reader)  # it is shared with the program that began this one


@pytest.mark.slow
def test_ltc_neurons_say_the_same_each_time_and_by_their_last_output(ltc, tmp_path):
    model, path = evaluation.load_trained(ltc, "cpu"), tmp_path / "one.npz"
    write_events(path, band(1))
    source = open_recording(path)
    torch.manual_seed(0)
    frames = model.preprocessing(band(1), fit_source(model, source).sensor_size, "x")[:, None]
    logits = predict(model.model, frames)[0]
    other = predict(model.model, frames)[0]
    assert not torch.equal(logits, other)  # from other membranes
    for label in (
        lambda source: label_windows(model, source, WHOLE, WHOLE),
        lambda source: label_stream(model, source, WINDOW),
    ):
        (found,), (again,) = (list(label(open_recording(path))) for _ in range(2))
        assert found == again and found.label == CLASSES[logits.argmax()]
        assert found.confidence == pytest.approx(logits.softmax(0).max().item(), abs=0.02)
    late = band(1, begin=4 * WINDOW)
    write_events(path, np.concatenate((band(1), late)))
    labels = [found.label for found in label_stream(model, open_recording(path), WINDOW)]
    assert labels[0] == CLASSES[logits.argmax()] and labels[2] is None  # silence


# The commands


def test_commands(run, session, tmp_path, capsys):
    path = tmp_path / "long.csv"
    path.write_bytes(as_text(long_recording([2, 0, 1])))
    base = ["--checkpoint", str(run), "--device", "cpu"]
    assert main(["predict", *base, "--window", "100ms", str(path)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["start", "s", "end", "s", "label", "confidence", "events"]
    assert [row[2] for row in rows[1:]] == ["right", "left", "middle"]
    live_argv = ["predict", *base, "--live", "--idle", "0", "--window", "100ms", str(path)]
    assert main(live_argv) == 0
    assert "right" in capsys.readouterr().out.splitlines()[1]
    learned, held = ([str(p) for p in part] for part in session)
    argv = ["adapt", *base, "--label-from-folder", "--out", str(tmp_path / "a"), *learned]
    assert main([*argv, "--hold-out", *held]) == 0
    out = capsys.readouterr().out
    assert "learned from 18 samples" in out and "held-out accuracy 0.3333 before" in out
    assert main(["predict", "--checkpoint", str(tmp_path / "a"), str(path)]) == 0


@pytest.mark.slow
def test_real_recordings_as_they_are(nmnist, tmp_path, capsys):
    """A folder of N-MNIST as somebody's own: looked at, trained on, single files labelled."""
    assert main(["data", "info", str(nmnist / "test"), "--out", str(tmp_path / "info")]) == 0
    out = capsys.readouterr().out
    assert "100 recordings, 10 classes" in out and "34 x 34" in out
    assert len(list((tmp_path / "info").iterdir())) == 2
    argv = ["train", "--data", str(nmnist), "--model", "test_ottt_vgg", "--train-samples", "300"]
    options = ["--epochs", "2", "--lr", "0.1", "--steps", "3", "--out", str(tmp_path / "run")]
    assert main([*argv, *options, "--device", "cpu"]) == 0
    capsys.readouterr()
    files = sorted((nmnist / "test").rglob("*.bin"))
    assert main(["predict", "--checkpoint", str(tmp_path / "run"), str(files[0])]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    # File by file, as the data set of all of them.
    trained = evaluation.load_trained(tmp_path / "run", "cpu")
    right = 0
    for file in files:
        (one,) = label_windows(trained, open_recording(file), WHOLE, WHOLE)
        right += one.label == file.parent.name
    (row,) = evaluation.evaluate(tmp_path / "run", device="cpu")
    assert right == round(100 * row["accuracy"])


def with_info(trained, **changes):
    return dataclasses.replace(trained, info=dataclasses.replace(trained.info, **changes))


def test_a_model_of_sliced_samples_knows_its_window(trained):
    assert trained.info.window is None
    assert durations(trained, None, None) == (WHOLE, WHOLE)
    trained = with_info(trained, window=5000)
    assert durations(trained, None, "1ms") == (5000, 1000)
    assert durations(trained, "2ms", None) == (2000, 2000)
    assert fewest_events(trained, None, None) == 1
    trained = with_info(trained, min_events=50)
    assert fewest_events(trained, None, None) == 50
    assert fewest_events(trained, None, "2ms") == 1
    assert fewest_events(trained, 7, None) == 7
    with pytest.raises(InputError, match="min_events=0: give a whole number"):
        fewest_events(trained, 0, None)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["predict", "/nowhere.npz"], "no such recording"),
        (["predict", "--live", "/nowhere.csv"], "cannot be read"),
        (["predict", "--sensor-size", "0", "5", "x"], "sensor_size=[0, 5]: give (height, width)"),
        (["predict", "--time-unit", "min", "x"], "time_unit='min': choose one of us, ns, ms, s"),
        (["predict", "--live", "--window", "1s", "--camera", "0", "x"], "--camera: a stream is"),
        (["predict", "--window", "0ms", "x"], "window=0ms: give a time above 0"),
        (["predict", "--window", "fast", "x"], "time 'fast'"),
        (["predict", "--live", "/dev/null"], "a stream has no end"),
        (["predict", "--window", "200", "x"], "time '200' has no unit: give it one, as in 200ms"),
        (["predict", "--live", "--stride", "1s", "x"], "--stride: with --live"),
        (["predict", "--idle", "1", "x"], "--idle: goes with --live only"),
        (["predict", "-"], "standard input: goes with --live only"),
        (["adapt", "--label-from-folder", "/nowhere.npz"], "no such recording"),
    ],
)
def test_bad_input(run, argv, message, capsys):
    assert main([argv[0], "--checkpoint", str(run), "--device", "cpu", *argv[1:]]) == 2
    assert message in capsys.readouterr().err


def test_more_bad_input(trained):
    with pytest.raises(InputError, match="lies outside the sensor"):
        wide = band(0)
        wide["x"] += 16
        list(label_windows(trained, streams.Source("x", [wide]), WINDOW, WINDOW))
    frames = dataclasses.replace(trained.info.frames, frames="surface")
    trained = with_info(trained, frames=frames)
    with pytest.raises(InputError, match="predict without --live"):
        list(label_stream(trained, streams.Source("x", [band(0)]), WINDOW))
    trained = with_info(trained, sensor_size=None)
    with pytest.raises(InputError, match="was not trained on recordings"):
        list(label_windows(trained, streams.Source("x", [band(0)]), WINDOW, WINDOW))


def test_a_stream_of_a_binary_recording_is_refused(run, tmp_path, capsys):
    path = tmp_path / "long.dat"
    path.write_bytes(dat(long_recording([0]).tolist(), "% Width 16\n% Height 16\n"))
    argv = ["predict", "--checkpoint", str(run), "--device", "cpu", "--window", "100ms", str(path)]
    assert main(argv) == 0
    capsys.readouterr()
    assert main([*argv, "--live"]) == 2
    assert "is a recording of the format Prophesee DAT" in capsys.readouterr().err


def test_a_step_of_a_stream_outside_the_crop_is_a_frame_of_zeros(trained):
    """The model sees the left half, where the second of three steps has no event."""
    frames = dataclasses.replace(trained.info.frames, crop=(0, 0, 16, 8), size=None)
    cropped = dataclasses.replace(trained, info=dataclasses.replace(trained.info, frames=frames))
    events = np.concatenate([band(0, begin=0), band(2, begin=WINDOW), band(0, begin=2 * WINDOW)])
    events["x"] = np.where(events["t"] // WINDOW == 1, 12, np.minimum(events["x"], 7))
    frames_seen = []
    hook = trained.model.register_forward_pre_hook(lambda _, args: frames_seen.append(args[0]))
    with hook:
        (prediction,) = label_stream(cropped, streams.Source("s", [events]), 3 * WINDOW)
    assert prediction.label is not None and prediction.events == len(events)
    assert [bool(x.any()) for x in frames_seen] == [True, False, True]
    assert {tuple(x.shape) for x in frames_seen} == {(1, 2, 16, 8)}


def test_a_window_outside_the_crop_gets_no_label(trained):
    """The model sees the left half, where the second of three windows has no event, or only two."""
    frames = dataclasses.replace(trained.info.frames, crop=(0, 0, 16, 8), size=None)
    cropped = with_info(trained, frames=frames)
    events = np.concatenate([band(0, begin=0), band(2, begin=WINDOW), band(0, begin=2 * WINDOW)])
    events["x"] = np.where(events["t"] // WINDOW == 1, 12, np.minimum(events["x"], 7))
    for left in (0, 2):  # of which three frames of equal count cannot be made
        events["x"][300 : 300 + left] = 3
        found = list(label_windows(cropped, streams.Source("s", [events]), WINDOW, WINDOW))
        assert [one.label is None for one in found] == [False, True, False]
        assert [one.events for one in found] == [240] * 3 and found[1].confidence == 0
    hot = dataclasses.replace(trained.info.frames, hot_pixels=1.0)
    lone = np.repeat(band(0)[:1], 500)
    lone["t"] = np.linspace(0, WINDOW - 1, 500).astype(int)
    (one,) = label_windows(with_info(trained, frames=hot), streams.Source("s", [lone]), WINDOW, 1)
    assert one.label is None


def test_large_frames_are_labelled_in_small_batches(trained, monkeypatch):
    sizes = []
    real = predict_module.logits_of
    monkeypatch.setattr(predict_module, "_BATCH_BYTES", 3 * 3 * 2 * 16 * 16 * 4 - 1)
    monkeypatch.setattr(
        predict_module, "logits_of", lambda t, x: sizes.append(len(x)) or real(t, x)
    )
    source = streams.Source("s", [long_recording([0, 1, 2, 2, 1, 0, 1])])
    found = list(label_windows(trained, source, WINDOW, WINDOW))
    assert [CLASSES.index(one.label) for one in found] == [0, 1, 2, 2, 1, 0, 1]
    assert sizes == [3, 3, 1]


def test_a_recording_as_one_window_says_what_it_takes(trained, monkeypatch):
    monkeypatch.setattr(predict_module, "_MANY", 200)
    source = streams.Source("s", [band(1)[:100], band(1)[100:]], None, 240)
    with pytest.warns(UserWarning, match="is one sample, whose about 240 events .*--window"):
        (one,) = label_windows(trained, source, WHOLE, WHOLE)
    assert one.events == 240 and one.end == WINDOW


@pytest.mark.parametrize("piece", [1, 100, 1000])
def test_what_is_wrong_across_blocks_is_found(trained, piece):
    events = np.concatenate([band(0), band(0, begin=WINDOW // 2)])
    chunks = [events[i : i + piece] for i in range(0, 480, piece)]
    with pytest.raises(InputError, match=r"x(, behind its first \d+ events)?: time runs backwards"):
        list(label_windows(trained, streams.Source("x", chunks), WINDOW, WINDOW))
    with pytest.raises(InputError, match="x: holds no events"):
        list(label_windows(trained, streams.Source("x", [events[:0]]), WINDOW, WINDOW))


def test_few_events_of_a_stream_get_no_label(trained):
    source = streams.Source("x", [long_recording([0, 2])])
    counts = [one.events for one in label_stream(trained, source, WINDOW)]
    few = label_stream(trained, source, WINDOW, min_events=max(counts) + 1)
    assert [one.label for one in few] == [None, None]
    labels = [one.label for one in label_stream(trained, source, WINDOW, min_events=min(counts))]
    assert labels == ["left", "right"]
