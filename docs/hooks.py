"""What the build of the site adds to the pages: `mkdocs.yml` names this file.

A line ``<!-- make: NAME ARGUMENTS -->`` of a page becomes what `docs.generated` makes of it, and an
image whose address is ``picture:NAME`` becomes a drawing of `docs.pictures`, inside the page so
that it takes the page's colours.
"""

import html
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
if str(ROOT) not in sys.path:  # mkdocs loads this file by its path
    sys.path.insert(0, str(ROOT))

from docs import generated, pictures  # noqa: E402

_MADE = re.compile(r"^<!-- make: (.+?) -->$", re.MULTILINE)
_PICTURE = re.compile(r'<img alt="([^"]*)" src="picture:([\w-]+)" ?/?>')


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put generated tables and lists in the place of the lines that name them."""
    return _MADE.sub(lambda found: generated.make(found[1]), markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Put drawings in the place of the images that name them."""

    def drawing(found: re.Match[str]) -> str:
        return pictures.inline(found[2], html.unescape(found[1]))

    return _PICTURE.sub(drawing, content)
