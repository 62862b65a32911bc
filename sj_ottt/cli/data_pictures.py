"""Pictures of recordings: a sheet of samples of each class, and one sample in motion."""

from pathlib import Path

from sj_ottt import plots
from sj_ottt._files import atomic_write
from sj_ottt.data.prepare.survey import Survey


def draw(survey: Survey, folder: Path) -> tuple[Path, Path]:
    """Write ``contact_sheet.png`` and ``sample.gif``.

    The sheet has a row a class, each picture the busiest 32 ms of a recording; the recordings are
    taken evenly from the class. The animation shows a recording of middling size, 2 s at most.

    Args:
        survey: What to draw, with its stills and its motion.
        folder: Takes the pictures, and is made where it is missing.

    Returns:
        The paths of both.

    Raises:
        InputError: The folder cannot be written.
    """
    assert survey.motion is not None
    counts, step_us, sample = survey.motion
    sheet = plots.contact_sheet(dict(sorted(survey.stills.items())), "the busiest 32 ms")
    motion = plots.animation(counts, step_us / 1000, f"{sample.label}  {sample.path.name}".strip())

    paths = folder / "contact_sheet.png", folder / "sample.gif"
    for path, data in zip(paths, (sheet, motion), strict=True):
        with atomic_write(path) as file:
            file.write(data)
    return paths
