"""Online adaptation: what is learned, from which windows, and what is left alone."""

import pytest
import torch

from sj_ottt import InputError
from sj_ottt.data import ReadOptions, write_events
from sj_ottt.data.recordings.streams import WHOLE
from sj_ottt.inference.adapt import _Cutter, adapt, open_labelled
from sj_ottt.run import evaluation
from tests.inference.recordings import WINDOW, long_recording


@pytest.mark.slow
def test_adapt_learns_what_changed(trained, session, tmp_path):
    learned, held = open_labelled(*session, None)
    cut = {"window": WHOLE, "stride": WHOLE}
    result = adapt(trained, learned * 4, held, **cut, lr=0.1, out=tmp_path / "adapted")
    assert (result.samples, result.held_out) == (72, 6)
    assert result.before == pytest.approx(1 / 3) and result.after == 1.0
    again = evaluation.load_trained(tmp_path / "adapted", "cpu")
    assert again.info.adapted == 72 and again.info.frames.steps == 3
    same = adapt(again, learned[:1], held, **cut, lr=0.0)
    assert same.before == same.after == 1.0


def test_a_rate_of_zero_learns_nothing(trained, session):
    before = {k: v.clone() for k, v in trained.model.state_dict().items()}
    learned, held = open_labelled(*session, None)
    result = adapt(trained, learned, held, window=WHOLE, stride=WHOLE, lr=0.0)
    assert result.before == result.after and result.right == 6
    assert all(torch.equal(before[k], v) for k, v in trained.model.state_dict().items())


def test_adapt_takes_windows_inside_labels(trained, tmp_path):
    path = tmp_path / "one.npz"
    write_events(path, long_recording([0, 1, 2, 2]))
    csv = tmp_path / "labels.csv"
    csv.write_text("file,start,end,label\none.npz,0,100ms,left\none.npz,150ms,,right\n")
    learned, _ = open_labelled([path], [], csv)
    seen = list(_Cutter(trained, ReadOptions(), WINDOW, WINDOW, 1)(learned[0]))
    assert [sample.target for sample in seen] == [0, 2, 2]


def test_adapt_trains_ltc_neurons_by_fptt(ltc, session, tmp_path):
    model = evaluation.load_trained(ltc, "cpu")
    before = {k: v.clone() for k, v in model.model.state_dict().items()}
    learned, held = open_labelled(*session, None)
    out = tmp_path / "adapted"
    result = adapt(model, learned, held, window=WHOLE, stride=WHOLE, lr=0.1, out=out)
    assert result.samples == 18
    again = evaluation.load_trained(out, "cpu").model.state_dict()
    assert not torch.equal(again["fc.weight"], before["fc.weight"])
    # What is written is the average, not the last weights.
    assert not torch.equal(again["fc.weight"], model.model.state_dict()["fc.weight"])


def test_wrong_labels(trained, session, tmp_path):
    files, _ = session
    with pytest.raises(InputError, match="is given twice"):
        open_labelled(files, files[:1], None)
    csv = tmp_path / "labels.csv"
    csv.write_text(f"file,start,end,label\n{files[0].name},,,left\n")
    with pytest.raises(InputError, match=f"has no line for .*{files[1].name}"):
        open_labelled(files[:2], [], csv)
    csv.write_text(f"file,start,end,label\n{files[0].name},,,lft\n")
    learned, _ = open_labelled(files[:1], [], csv)
    cut = {"window": WHOLE, "stride": WHOLE}
    with pytest.raises(InputError, match=r"'lft' is no class of the model; did you mean left\?"):
        adapt(trained, learned, **cut)
    learned, _ = open_labelled(files[:1], [], None)
    with pytest.raises(InputError, match="no window with 9999 events"):
        adapt(trained, learned, **cut, min_events=9999)


def test_one_table_labels_many_recordings(session, tmp_path):
    """A folder of recordings, and a table that names others too."""
    files, held = session
    csv = tmp_path / "labels.csv"
    names = [f"{p.parent.name}/{p.name}" for p in (*files, *held)]
    csv.write_text("\n".join(["file,start,end,label", *(f"{n},,,left" for n in names), "b,,,x"]))
    learned, none = open_labelled([files[0].parent], [], csv)
    assert [one.path for one in learned] == sorted(files[0].parent.iterdir()) and none == []


def test_adapt_keeps_what_is_there(trained, run, session, tmp_path):
    learned, _ = open_labelled(*session, None)
    cut = {"window": WHOLE, "stride": WHOLE}
    before = (run / "best.safetensors").read_bytes()
    with pytest.raises(InputError, match="holds a model already"):
        adapt(trained, learned, **cut, out=run)
    assert (run / "best.safetensors").read_bytes() == before
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "last.pt").write_bytes(b"")
    with pytest.raises(InputError, match="holds a run already"):
        adapt(trained, learned, **cut, out=begun)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be made"):
        adapt(trained, learned, **cut, out=tmp_path / "file" / "a")
    for lr in (-1.0, float("nan")):
        with pytest.raises(InputError, match="give a learning rate"):
            adapt(trained, learned, **cut, lr=lr)
