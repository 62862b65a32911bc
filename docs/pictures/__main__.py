"""Write the drawings that stand alone: ``python -m docs.pictures``."""

from pathlib import Path

from docs.pictures import ALONE, PICTURES
from docs.pictures.style import alone

for name, path in ALONE.items():
    Path(path).write_text(alone(PICTURES[name]()), encoding="utf-8")
    print(path)
