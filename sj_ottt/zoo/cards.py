"""The card of weights: facts that programs read, in front of text for people.

The facts stand between two lines of ``---`` at the top of the Markdown file, as YAML, where model
hubs look for them too.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from sj_ottt._yaml import load_yaml
from sj_ottt.errors import InputError
from sj_ottt.zoo.folders import ZooEntry

__all__ = ["Card", "Figure", "read_card", "write_card"]

_CARD_LIMIT = 1_000_000  # bytes
_FENCE = "---\n"

_USE = """```python
import timm, sj_ottt

model = timm.create_model("{name}", pretrained=True)
```
"""


@dataclasses.dataclass(frozen=True)
class Figure:
    """What was measured of weights, on which data.

    Attributes:
        data: Name of the data set, without its folder.
        split: "train" or "test".
        samples: How many samples of it there were, the first ones.
        metric: "accuracy", among the classes of the data set.
        value: What was measured, 0 to 1.
        tolerance: How far another machine's value may lie from it.
        input: How samples became input: options of `Preprocessing`; those left out at their
            defaults.
        readout: Of the model, as in `models`.
        reading: How recordings were read: options of `ReadOptions`; those left out at their
            defaults.
    """

    data: str
    split: str
    samples: int
    metric: str
    value: float
    tolerance: float
    input: Mapping[str, Any]
    readout: str = "traced"
    reading: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        number = isinstance(self.value, float) and isinstance(self.tolerance, float)
        if not (number and 0 <= self.value <= 1 and 0 <= self.tolerance <= 1):
            raise ValueError("value and tolerance must be numbers from 0.0 to 1.0")
        if self.metric != "accuracy":
            raise ValueError(f"metric {self.metric!r} is unknown: it must be accuracy")
        if type(self.samples) is not int or self.samples < 1:
            raise ValueError("samples must be a whole number from 1 on")
        texts = (self.data, self.split, self.readout)
        mappings = (self.input, self.reading)
        if not all(isinstance(text, str) for text in texts) or not all(
            isinstance(mapping, dict) for mapping in mappings
        ):
            raise ValueError("data, split and readout must be texts, input and reading mappings")


@dataclasses.dataclass(frozen=True)
class Card:
    """What a card says.

    Attributes:
        text: All of it.
        trained_on: The data in a few words.
        sha256: Of the weights that it describes.
        provenance: How the weights came to be.
        results: What was measured of them.
    """

    text: str
    trained_on: str
    sha256: str
    provenance: Mapping[str, Any]
    results: tuple[Figure, ...]


def write_card(
    name: str,
    *,
    about: str,
    license: str,
    trained_on: str,
    provenance: Mapping[str, Any],
    results: Sequence[Figure],
) -> str:
    """Return the text of a card, with ``{sha256}`` where the digest of the weights belongs.

    Args:
        name: `arch.tag`.
        about: Text for people.
        license: Of the weights.
        trained_on: The data in a few words.
        provenance: How the weights came to be: plain values, lists and mappings of them.
        results: What was measured of them.
    """
    facts = {
        "name": name,
        "license": license,
        "library_name": "timm",
        "sha256": "{sha256}",
        "trained_on": trained_on,
        "provenance": dict(provenance),
        "results": [dataclasses.asdict(figure) for figure in results],
    }
    front = yaml.safe_dump(facts, sort_keys=False, allow_unicode=True, width=100)
    text = f"{about.strip()}\n\n" if about.strip() else ""
    return f"{_FENCE}{front}{_FENCE}\n# {name}\n\n{text}{_USE.format(name=name)}"


def read_card(entry: ZooEntry) -> Card:
    """Read the card of weights.

    Raises:
        InputError: It is missing, or does not say what a card must say.
    """
    try:
        if entry.card.stat().st_size > _CARD_LIMIT:
            raise ValueError(f"larger than {_CARD_LIMIT // 1_000_000} MB")
        text = entry.card.read_text(encoding="utf-8")
        _, front, _ = re.split(f"^{_FENCE}", text, maxsplit=2, flags=re.MULTILINE)
        facts = load_yaml("\n" + front, "its facts")  # lines count from the fence
        return Card(
            text,
            str(facts["trained_on"]),
            str(facts["sha256"]),
            dict(facts["provenance"]),
            tuple(Figure(**row) for row in facts["results"]),
        )
    except FileNotFoundError as error:
        raise InputError(f"{entry.card} is missing: put the card of {entry.name} there") from error
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{entry.card} is not a card ({reason}); restore it, or mend the lines between its "
            "first two ---"
        ) from error
