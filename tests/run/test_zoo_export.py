"""What a card says of a run: notes, names of data, tolerances."""

import json
import shutil

import pytest

from sj_ottt import InputError
from sj_ottt.run.zoo_export import data_name, export_run
from sj_ottt.zoo.cards import read_card


def test_notes_add_to_what_the_run_says(finished, tmp_path):
    """They may hold what looks like the end of the facts, and replace none of these."""
    run, result = finished
    text = "x\n---\ny"
    entry = export_run(run, "a", tmp_path, notes={"b": text}, about=text)
    card = read_card(entry)
    assert card.provenance["b"] == text and card.provenance["seed"] == result["config"]["seed"]
    with pytest.raises(InputError, match="note seed=77: the card says seed of the run itself"):
        export_run(run, "b", tmp_path, notes={"seed": "77"})


def test_a_figure_of_one_sample_may_be_another(finished, tmp_path):
    run = shutil.copytree(finished[0], tmp_path / "run")
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps({**result, "n_test": 1}))
    (figure,) = read_card(export_run(run, "a", tmp_path / "zoo")).results
    assert figure.samples == 1 and figure.tolerance == 1.0


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("folder:/x/birds", "folder:birds"),
        ("folder:planes/", "folder:planes"),
        ("nmnist:/x/y", "nmnist"),
        ("mnist:/x/y", "mnist"),
        ("/x/bands", "bands"),
        ("ndigits", "ndigits"),
        ("/x/drawings.npz", "drawings.npz"),
    ],
)
def test_data_are_named_without_their_place(spec, name):
    assert data_name(spec) == name
