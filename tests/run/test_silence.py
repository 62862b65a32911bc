"""Models whose neurons do not fire: the run says so, and calibrate mends it."""

import warnings

import pytest
import torch
from torch import nn

from sj_ottt import InputError, layer, neuron
from sj_ottt.learning import predict
from sj_ottt.learning.spikes import count_spikes
from sj_ottt.run import training_run
from sj_ottt.run.config import TrainConfig
from sj_ottt.run.silence import warn_of_silence
from sj_ottt.run.training_run import TrainingRun
from tests.run.helpers import interrupt_after, train


def network(*before_the_neuron: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return layer.OTTTSequential(
        layer.WSConv2d(2, 4, 3, padding=1), *before_the_neuron, neuron.OTTTLIFNode(),
        layer.WSConv2d(4, 4, 3, padding=1), neuron.OTTTLIFNode(),
        layer.Flatten(), neuron.MembraneReadout(layer.Linear(4 * 64, 3)),
    )  # fmt: skip


def test_layers_that_do_not_fire_are_named_and_others_are_not():
    model, x_seq = network(), torch.randn(3, 4, 2, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_silence(model, x_seq, None)
        warn_of_silence(model, x_seq[0], 3)  # a still image
    model[2].gain.data *= 1e-3
    with pytest.warns(UserWarning, match="hardly a neuron fires in 3, so .*--calibrate"):
        warn_of_silence(model, x_seq, None)
    model[0].gain.data *= 1e-3
    with pytest.warns(UserWarning, match="fires in 1, 3, so"):
        warn_of_silence(model, x_seq, None)
    assert model.training


def test_batch_norm_is_left_alone_as_its_statistics_are_not_there_yet():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = network(layer.BatchNorm2d(4))
        model[0].gain.data *= 1e-3
        assert count_spikes(model, torch.randn(3, 4, 2, 8, 8))["2"][0] == 0  # in evaluation
        warn_of_silence(model, torch.randn(3, 4, 2, 8, 8), None)


@pytest.fixture
def quiet(monkeypatch):
    """New models whose first layer is too weak to fire."""
    build = training_run.build_model

    def weak(*args, **kwargs):
        model = build(*args, **kwargs)
        if not kwargs["resumed"]:
            next(m for m in model.modules() if isinstance(m, layer.WSConv2d)).gain.data *= 1e-3
        return model

    monkeypatch.setattr(training_run, "build_model", weak)


def test_a_run_warns_once_and_its_resume_no_more(options, quiet, monkeypatch):
    options["epochs"] = 2
    with monkeypatch.context() as patch:
        interrupt_after(patch, "run_epoch", 1)
        with pytest.warns(UserWarning) as seen, pytest.raises(KeyboardInterrupt):
            train(options)
    assert sum("hardly a neuron" in str(w.message) for w in seen) == 1
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "hardly a neuron")
        train(options, resume=True)


def test_the_look_changes_nothing_of_the_run(options, monkeypatch):
    with_it = train(options, out=options["out"] + "-1")["history"]
    monkeypatch.setattr(training_run, "warn_of_silence", lambda *args: None)
    assert train(options, out=options["out"] + "-2")["history"] == with_it


def spreads(run: TrainingRun) -> torch.Tensor:
    """The standard deviation of each standardized layer's output on a batch to train on."""
    found: list[torch.Tensor] = []
    for module in run.model.modules():
        if isinstance(module, layer.WSConv2d):
            module.register_forward_hook(lambda m, a, y: found.append(y.std()))
    x_seq, _ = next(iter(run._training_loader()))
    predict(run.model, x_seq[:1])
    return torch.stack(found)


def test_calibrate_sets_the_gains_of_a_new_model(options):
    options["batch_size"] = 24  # all of them, in any order
    options["shift"] = 0
    as_built = spreads(TrainingRun(TrainConfig(**options)))
    calibrated = spreads(TrainingRun(TrainConfig(**options, calibrate=True)))
    torch.testing.assert_close(calibrated, torch.ones(len(as_built)), atol=1e-3, rtol=0)
    assert (as_built - 1).abs().max() > 0.1


def test_a_resumed_run_keeps_its_gains(options, monkeypatch):
    whole = train(options, calibrate=True, out=options["out"] + "-whole")["history"]
    with monkeypatch.context() as patch:
        interrupt_after(patch, "run_epoch", 1)
        with pytest.raises(KeyboardInterrupt):
            train(options, calibrate=True)
    assert train(options, calibrate=True, resume=True)["history"] == whole
    assert train(options, out=options["out"] + "-without")["history"] != whole


@pytest.mark.parametrize("start", [{"pretrained": True}, {"pull_to": "runs/first"}])
def test_calibrate_is_for_new_models(start):
    with pytest.raises(InputError, match=f"and {next(iter(start))} gives it trained ones: leave"):
        TrainConfig(calibrate=True, **start)


def test_a_model_without_standardized_weights_cannot_be_calibrated(options):
    options |= {"model": "test_ltc_cnn", "rule": "fptt", "calibrate": True}
    with pytest.raises(InputError, match="has none: leave it out"):
        TrainingRun(TrainConfig(**options))
