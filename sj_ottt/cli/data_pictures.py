"""Pictures of recordings: a sheet of samples of each class, and one sample in motion."""

from pathlib import Path

from sj_ottt import plots
from sj_ottt._files import atomic_write
from sj_ottt.data.prepare.survey import Survey, busiest_frames, evenly

_COLUMNS = 8
_SHEET_US = 30_000
_ANIMATION_STEPS = 48


def draw(survey: Survey, folder: Path) -> tuple[Path, Path]:
    """Write ``contact_sheet.png`` and ``sample.gif``.

    The sheet has a row a class, each picture the busiest 30 ms of a recording; the recordings are
    taken evenly from the class. The animation shows the recording of the median number of events,
    2 s at most.

    Args:
        survey: What to draw.
        folder: Takes the pictures, and is made where it is missing.

    Returns:
        The paths of both.

    Raises:
        InputError: The folder cannot be written.
    """
    rows = {}
    for label in sorted({one.label for one in survey.recordings}):
        members = [one for one in survey.recordings if one.label == label]
        rows[label] = [
            busiest_frames(one.path, survey.sensor_size, 1, _SHEET_US, 160)[0]
            for one in evenly(members, _COLUMNS)
        ]
    sheet = plots.contact_sheet(rows, f"the busiest {_SHEET_US // 1000} ms")

    ranked = sorted(survey.recordings, key=lambda one: one.events)
    sample = ranked[len(ranked) // 2]
    step_us = max(1_000, min(sample.duration, 2_000_000) // _ANIMATION_STEPS)
    counts = busiest_frames(sample.path, survey.sensor_size, _ANIMATION_STEPS, step_us, 240)
    motion = plots.animation(counts, step_us / 1000, f"{sample.label}  {sample.path.name}".strip())

    paths = folder / "contact_sheet.png", folder / "sample.gif"
    for path, data in zip(paths, (sheet, motion), strict=True):
        with atomic_write(path) as file:
            file.write(data)
    return paths
