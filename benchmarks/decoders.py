"""Read one file with one decoder, and print events, seconds of one core, and peak bytes, as JSON.

A script of its own, so that any Python can run it that has the decoder: ``decoders.py NAME FILE``.
With "by blocks" behind its name, a decoder keeps no events.
"""

import importlib.util
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path


def _sj_ottt(path: str) -> Callable[[], int]:
    from sj_ottt.data import read_recording

    return lambda: len(read_recording(path).events)


def _sj_ottt_blocks(path: str) -> Callable[[], int]:
    from sj_ottt.data.recordings.readers import open_recording

    return lambda: sum(map(len, open_recording(path).chunks))


def _faery(path: str) -> Callable[[], int]:
    import faery

    return lambda: len(faery.events_stream_from_file(path).to_array())


def _faery_blocks(path: str) -> Callable[[], int]:
    import faery

    return lambda: sum(map(len, faery.events_stream_from_file(path)))


def _wizard(path: str):
    import expelliarmus

    name = Path(path).stem
    encoding = next((known for known in ("dat", "evt2", "evt3") if name.startswith(known)), "")
    return expelliarmus.Wizard(encoding=encoding, fpath=path)


def _expelliarmus(path: str) -> Callable[[], int]:
    wizard = _wizard(path)
    return lambda: len(wizard.read())


def _expelliarmus_blocks(path: str) -> Callable[[], int]:
    wizard = _wizard(path)
    wizard.set_chunk_size(1 << 17)
    return lambda: sum(map(len, wizard.read_chunk()))


def _evt3(path: str) -> Callable[[], int]:
    import evt3

    return lambda: len(evt3.decode_file(path).t)


def _evlib(path: str) -> Callable[[], int]:
    import evlib

    return lambda: len(evlib.load_events(path).collect())


def _aedat(path: str) -> Callable[[], int]:
    import aedat
    import numpy as np

    def read() -> int:
        packets = [packet["events"] for packet in aedat.Decoder(path) if "events" in packet]
        return len(np.concatenate(packets))

    return read


def _dv_processing(path: str) -> Callable[[], int]:
    import dv_processing

    def read() -> int:
        recording, events = dv_processing.io.MonoCameraRecording(path), dv_processing.EventStore()
        while (batch := recording.getNextEventBatch()) is not None:
            events.add(batch)
        return len(events.numpy())

    return read


def _event_stream(path: str) -> Callable[[], int]:
    import event_stream
    import numpy as np

    return lambda: len(np.concatenate(list(event_stream.Decoder(path))))


def _event_stream_blocks(path: str) -> Callable[[], int]:
    import event_stream

    return lambda: sum(map(len, event_stream.Decoder(path)))


def _h5py(path: str) -> Callable[[], int]:
    import h5py
    import hdf5plugin  # noqa: F401

    def read() -> int:
        with h5py.File(path) as file:
            columns = [file[f"events/{name}"][()] for name in "txyp"]
        return len(columns[0])

    return read


def _numpy(path: str) -> Callable[[], int]:
    import numpy as np

    def read() -> int:
        if path.endswith(".csv"):
            return len(np.loadtxt(path, np.int64, delimiter=",", skiprows=1))
        loaded = np.load(path)
        columns = [loaded] if path.endswith(".npy") else [loaded[name] for name in "txyp"]
        return len(columns[0])

    return read


# The module that a decoder needs, and what makes it ready; the import does not count.
DECODERS: dict[str, tuple[str, Callable[[str], Callable[[], int]]]] = {
    "sj_ottt": ("sj_ottt", _sj_ottt),
    "sj_ottt by blocks": ("sj_ottt", _sj_ottt_blocks),
    "faery": ("faery", _faery),
    "faery by blocks": ("faery", _faery_blocks),
    "expelliarmus": ("expelliarmus", _expelliarmus),
    "expelliarmus by blocks": ("expelliarmus", _expelliarmus_blocks),
    "evt3": ("evt3", _evt3),
    "evlib": ("evlib", _evlib),
    "aedat": ("aedat", _aedat),
    "dv-processing": ("dv_processing", _dv_processing),
    "event_stream": ("event_stream", _event_stream),
    "event_stream by blocks": ("event_stream", _event_stream_blocks),
    "h5py": ("h5py", _h5py),
    "numpy": ("numpy", _numpy),
}


def _resident(what: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) << 10


def main() -> None:
    """Read the file, and print how it went; nothing where the decoder is not installed."""
    name, path = sys.argv[1:]
    module, make = DECODERS[name]
    if importlib.util.find_spec(module) is None:
        return
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    read = make(path)
    # The peak is counted from here on: modules are loaded.
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    start = time.process_time()
    n = read()
    seconds = time.process_time() - start
    peak = max(_resident("VmHWM"), resource.getpagesize()) - before
    print(json.dumps({"events": n, "seconds": seconds, "bytes": max(peak, 0)}))


if __name__ == "__main__":
    main()
