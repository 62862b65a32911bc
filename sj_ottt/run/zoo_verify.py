"""Weights of a zoo evaluated again, against what their card says."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch.utils.data import Subset

from sj_ottt import zoo
from sj_ottt.data import Preprocessing, ReadOptions
from sj_ottt.data.sets.open import EMBEDDED
from sj_ottt.errors import InputError
from sj_ottt.learning import predict
from sj_ottt.run.evaluation import (
    batches_to_measure,
    count_right,
    fixed_seed,
    resolve_device,
)
from sj_ottt.run.zoo_export import data_name
from sj_ottt.zoo.cards import Figure, read_card

__all__ = ["Verified", "verify"]


@dataclass(frozen=True)
class Verified:
    """A figure of a card, measured again.

    Attributes:
        figure: What the card says.
        data: The data set that it was measured on.
        value: What was measured.
    """

    figure: Figure
    data: str
    value: float

    @property
    def agrees(self) -> bool:
        """Whether the two values lie within the tolerance."""
        return abs(self.value - self.figure.value) <= self.figure.tolerance + 1e-9


def verify(
    name: str,
    data: Sequence[str] = (),
    own: str | Path | None = None,
    *,
    batch_size: int = 64,
    device: str = "auto",
) -> list[Verified]:
    """Evaluate weights on their card's data again; their file and its digest are checked first.

    Args:
        name: `arch.tag`, or an architecture for its first weights.
        data: Data sets as for ``sj-ottt train``, told apart by their names; those that the card
            names and that are embedded, or lie in the current folder, need not be given.
        own: The user's zoo, see `zoo.own_folder`.
        batch_size: Samples in a batch.
        device: As in `TrainConfig`.

    Returns:
        One row for each figure of the card, in its order.

    Raises:
        InputError: There are no such weights, their file was changed, the card has no figures, or
            data are missing or are not those that the card means.
    """
    entry = zoo.entry_named(name, own)
    entry.check_file()
    card = read_card(entry)
    if card.sha256 != entry.sha256:
        raise InputError(
            f"{entry.card} is the card of other weights: its sha256 is not the manifest's; put the "
            "card of these weights there"
        )
    if not card.results:
        raise InputError(f"the card of {entry.name} has no figures to compare with: {entry.card}")
    if batch_size < 1:
        raise InputError(f"batch_size must be a whole number from 1 on, not {batch_size}")
    found = _find(entry.name, card.results, data)
    return [
        Verified(figure, spec, _measure(entry, figure, spec, batch_size, device))
        for figure, spec in zip(card.results, found, strict=True)
    ]


def _find(name: str, figures: Sequence[Figure], data: Sequence[str]) -> list[str]:
    """Return where the data of each figure are.

    Raises:
        InputError: One is missing, or what is given is the data of none.
    """
    wanted = list(dict.fromkeys(figure.data for figure in figures))
    given = {data_name(spec): spec for spec in data}
    if len(wanted) == len(data) == 1:
        given = {wanted[0]: data[0]}  # whatever its file is called
    if others := [spec for known, spec in given.items() if known not in wanted]:
        raise InputError(
            f"--data {others[0]}: the figures of {name} are of {', '.join(wanted)}; give those"
        )
    places = {**{d: d for d in wanted if d in EMBEDDED or Path(d).exists()}, **given}
    for figure in figures:
        if figure.data not in places:
            raise InputError(
                f"{name}: its {figure.metric} of {100 * figure.value:.2f}% is of {figure.data}, "
                f"the first {figure.samples:,} samples of its {figure.split} part: give --data "
                f"with the path of it"
            )
    return [places[figure.data] for figure in figures]


def _measure(
    entry: zoo.ZooEntry, figure: Figure, spec: str, batch_size: int, device_name: str
) -> float:
    device = resolve_device(device_name)
    try:
        preprocessing = Preprocessing.from_options(figure.input)
        reading = ReadOptions(**figure.reading)
    except (TypeError, KeyError, InputError) as error:
        raise InputError(f"{entry.card}: its input cannot be made ({error}); mend it") from error
    dataset = preprocessing.open(spec, figure.split, reading)
    if len(dataset) < figure.samples:
        raise InputError(
            f"{spec} has {len(dataset):,} samples in its {figure.split} part, and the figure of "
            f"{entry.name} is of {figure.samples:,}: give the data set that it was measured on"
        )
    first = _place(tuple(entry.cfg.get("label_names") or ()), tuple(dataset.classes))
    if first is None:
        raise InputError(
            f"{spec} has the classes {', '.join(dataset.classes[:10])}, which {entry.name} does "
            f"not name in this order; give {figure.data}"
        )
    model = zoo.create(
        entry.arch,
        entry.cfg["num_classes"],
        in_chans=entry.cfg["input_size"][0],
        readout=figure.readout,
    )
    zoo.load_weights(model, entry.file)
    model.to(device)
    steps = preprocessing.framing.steps if dataset.still else None
    among = slice(first, first + len(dataset.classes))
    right = 0
    samples = Subset(dataset, range(figure.samples))
    with fixed_seed(device):
        for x_seq, target in batches_to_measure(samples, batch_size, 0, device):
            logits = predict(model, x_seq.to(device), steps)[:, among]
            right += count_right(logits, target.to(device))
    return right / figure.samples


def _place(names: tuple[str, ...], classes: tuple[str, ...]) -> int | None:
    """Return where a data set's classes begin among a model's; None where they are not there."""
    starts: Iterable[int] = range(len(names) - len(classes) + 1)
    found: Iterator[int] = (i for i in starts if names[i : i + len(classes)] == classes)
    return next(found, None)
