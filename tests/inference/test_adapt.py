"""Online adaptation: what is learned, from which windows, and what is left alone."""

import pytest
import torch

from sj_ottt import InputError
from sj_ottt.data import ReadOptions, write_events
from sj_ottt.data.recordings.streams import WHOLE
from sj_ottt.errors import NotFiniteError
from sj_ottt.inference import adapt as adapt_module
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


def test_a_damaged_recording_is_refused_before_anything_is_learned(trained, session, tmp_path):
    files, _ = session
    learned, _ = open_labelled(files[:3], [], None)
    before = {k: v.clone() for k, v in trained.model.state_dict().items()}
    files[2].write_bytes(b"x")
    with pytest.raises(InputError, match=files[2].name):
        adapt(trained, learned, window=WHOLE, stride=WHOLE, out=tmp_path / "a")
    assert all(torch.equal(before[k], v) for k, v in trained.model.state_dict().items())
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("error", [InputError("cut off"), KeyboardInterrupt()])
def test_what_was_learned_before_an_error_is_kept(trained, session, tmp_path, error, monkeypatch):
    learned, _ = open_labelled(session[0][:3], [], None)
    real, calls = adapt_module.train_step, []

    def step(*args, **kwargs):
        calls.append(args)
        if len(calls) == 3:
            raise error
        return real(*args, **kwargs)

    monkeypatch.setattr(adapt_module, "train_step", step)
    cut = {"window": WHOLE, "stride": WHOLE}
    with (
        pytest.raises(type(error)),
        pytest.warns(UserWarning, match="/a holds what was learned from 2 samples"),
    ):
        adapt(trained, learned, **cut, out=tmp_path / "a")
    again = evaluation.load_trained(tmp_path / "a", "cpu")
    assert again.info.adapted == 2
    weights = trained.model.state_dict()
    assert all(torch.equal(weights[k], v) for k, v in again.model.state_dict().items())


@pytest.mark.parametrize("n", [1, 2])  # found at the end, and by the loss of the next sample
def test_what_is_not_finite_is_not_written(n, trained, session, tmp_path, monkeypatch):
    learned, _ = open_labelled(session[0][:n], [], None)
    real = adapt_module.train_step

    def overflow(model, *args, **kwargs):
        result = real(model, *args, **kwargs)
        with torch.no_grad():
            next(model.parameters()).fill_(float("nan"))
        return result

    monkeypatch.setattr(adapt_module, "train_step", overflow)
    with pytest.raises(NotFiniteError, match="lower"):
        adapt(trained, learned, window=WHOLE, stride=WHOLE, out=tmp_path / "a")
    assert not any((tmp_path / "a").iterdir())
