"""Raw labelled recordings in, a fine-tuned spiking network and the labels of a new recording out.

    python examples/finetune_own_dvs.py RECORDINGS LABELS.csv NEW_RECORDING

RECORDINGS is a folder of files as the camera wrote them (AEDAT, RAW, DAT, HDF5, CSV, npz, ...);
LABELS.csv has lines of file,start,end,label. Started again, it goes on where it was stopped.
"""

import argparse
import sys
from pathlib import Path

from sj_ottt import InputError
from sj_ottt.data import SliceConfig, find_recordings, read_labels, slice_recordings
from sj_ottt.data.recordings.readers import open_recording
from sj_ottt.inference.predict import durations, label_windows
from sj_ottt.run import training
from sj_ottt.run.config import TrainConfig
from sj_ottt.run.evaluation import load_trained


def main() -> None:
    """Slice, fine-tune, predict."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recordings", help="folder of recordings")
    parser.add_argument("labels", help="CSV of labels")
    parser.add_argument("new", help="a recording to label")
    parser.add_argument("--out", type=Path, default=Path("own"), help="folder to make")
    parser.add_argument("--epochs", type=int, default=20)
    args = parser.parse_args()

    samples, run = args.out / "samples", args.out / "run"
    if not samples.exists():
        labelled = read_labels(args.labels, find_recordings([args.recordings]))
        # Times are in µs. Test samples are cut from recordings of their own.
        cut = SliceConfig(window=200_000, stride=100_000, min_events=500, hold_out="recording")
        parts = slice_recordings(labelled, samples, cut).parts
        print({name: len(windows) for name, windows in parts.items()}, "samples")
    config = TrainConfig(
        model="ottt_vgg5_ws", pretrained=True, data=str(samples), out=str(run), size=(34, 34),
        epochs=args.epochs, early_stop=5, class_weights=True, shift=2,
    )  # fmt: skip
    result = training.train(config, resume=(run / "last.pt").exists())
    print(f"test accuracy {result['test_accuracy']:.4f}")

    trained = load_trained(run)
    window, _ = durations(trained, None, None)  # as in training
    for prediction in label_windows(trained, open_recording(args.new), window, window):
        print(f"{prediction.start / 1e6:.1f} s: {prediction.label} ({prediction.confidence:.0%})")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
