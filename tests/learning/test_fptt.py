"""The update of FPTT: its path by hand, its limits, what it leaves alone, and that it resumes."""

import copy
import io

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from sj_ottt import InputError, layer, learning
from sj_ottt.learning import FPTT, train_step
from sj_ottt.learning.fptt import FORMS
from sj_ottt.neuron import LTCRecurrent, OTTTLIFNode
from tests.learning.networks import LTCNet, sequence, squared
from tests.networks import parameters


def always(p, n):
    return 1.0


# The path of one weight on the loss W²/2, learning rate 0.1, from W = W̄ = 1, Λ = 0, by hand.
PATHS = {
    # α = 0.5, β = 0.5, ρ = 0
    "lambda": [(0.9, 0.9, 0.05), (0.815, 0.765, 0.0925), (0.74025, 0.64775, 0.104875)],
    "grad": [(0.9, 0.05, 0.9), (0.8125, -0.38125, 0.8125), (0.7121875, -0.54671875, 0.7121875)],
}


@pytest.mark.parametrize("form", PATHS)
def test_path_of_a_scalar_by_hand(form):
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.ones_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    fptt = FPTT(optimizer, alpha=0.5, clip=None, form=form, weight=always)
    x, target = torch.ones(1, 1, 1).double(), torch.zeros(1).double()
    for w, average, dual in PATHS[form]:
        train_step(model, fptt, x, target, loss_fn=squared)
        state = fptt.state_dict()
        assert model.weight.item() == pytest.approx(w, abs=1e-14)
        assert state["average"][0].item() == pytest.approx(average, abs=1e-14)
        assert state["dual"][0].item() == pytest.approx(dual, abs=1e-14)
        with fptt.averaged():
            assert model.weight.item() == pytest.approx(average, abs=1e-14)
    # The parts of one sequence are the same updates as sequences of one part.
    nn.init.ones_(model.weight)
    fptt = FPTT(optimizer, alpha=0.5, clip=None, form=form, weight=always)
    train_step(model, fptt, x.expand(3, 1, 1), target, loss_fn=squared)
    assert model.weight.item() == pytest.approx(PATHS[form][-1][0], abs=1e-14)


def test_beta_rho_weights_and_auxiliary_by_the_equations():
    """The loss w W²/2 + (1 − w) 3 W over two parts of two sequences."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.ones_(model.weight)
    fptt = FPTT(
        torch.optim.SGD(model.parameters(), 0.1),
        alpha=0.3,
        beta=0.4,
        rho=0.25,
        clip=None,
        auxiliary=lambda logits, target: 3 * logits.sum(),
    )
    w = average = 1.0
    dual = 0.0
    for _ in range(2):
        train_step(
            model, fptt, torch.ones(2, 1, 1).double(), torch.zeros(1).double(), loss_fn=squared
        )
        for share in (0.5, 1.0):
            gradient = share * w + (1 - share) * 3 - 0.75 * dual + 0.3 * (w - average)
            w -= 0.1 * gradient
            dual -= 0.3 * (w - average)
            average = 0.6 * average + 0.4 * w - 0.4 / 0.3 * dual
    state = fptt.state_dict()
    found = (model.weight.item(), state["average"][0].item(), state["dual"][0].item())
    assert found == pytest.approx((w, average, dual), abs=1e-13)


@pytest.mark.parametrize("network", ["chain", "test_ottt_vgg"])
def test_without_a_pull_it_is_the_online_update(network):
    """Exact in the limit of a small α, for traces too; with α = 1 it is something else."""
    torch.manual_seed(0)
    if network == "chain":
        model = layer.OTTTSequential(layer.Linear(6, 16), OTTTLIFNode(), layer.Linear(16, 3))
        nn.init.normal_(model[0].weight)
        x_seq = 2 * torch.rand(5, 4, 6).double()
    else:
        model = timm.create_model(network, num_classes=3)
        x_seq = 3 * torch.randn(5, 4, 3, 16, 16).double()
    model.double()
    target, start = torch.tensor([0, 1, 2, 0]), copy.deepcopy(model.state_dict())
    results = []
    for alpha in (None, 1e-12, 1.0):
        model.load_state_dict(start)
        trainer = torch.optim.SGD(model.parameters(), 0.5)
        kwargs = {"update": "online"}
        if alpha is not None:
            trainer = FPTT(trainer, alpha, clip=None, weight=lambda p, n: 1 / n)
            kwargs = {}
        out = train_step(model, trainer, x_seq, target, **kwargs)
        results.append((*out, parameters(model)))
    assert (results[0][2] - torch.cat([v.flatten() for v in start.values()])).norm() > 1e-3
    torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-10)
    assert (results[2][2] - results[0][2]).norm() > 1e-3


@pytest.mark.parametrize("form", FORMS)
def test_the_norm_is_clipped_with_the_pull_in_it(form):
    model, (x_seq, target) = LTCNet(), sequence(steps=2)
    moved = []
    for clip in (None, 0.01):
        twin = copy.deepcopy(model)
        fptt = FPTT(torch.optim.SGD(twin.parameters(), 1.0), 0.5, clip=clip, parts=1, form=form)
        for _ in range(2):
            before = parameters(twin)
            train_step(twin, fptt, x_seq, 50 + target, loss_fn=squared)
            moved.append((parameters(twin) - before).norm().item())
    assert min(moved[:2]) > 0.1
    assert moved[2:] == pytest.approx([0.01, 0.01])


@pytest.mark.parametrize("form", FORMS)
def test_a_parameter_without_gradient_is_left_alone(form):
    model, (x_seq, target) = LTCNet(), sequence()
    model[1].bias.requires_grad_(False)
    unused = nn.Parameter(torch.ones(2))
    fptt = FPTT(torch.optim.SGD([*model.parameters(), unused], 0.1), 0.5, form=form)
    bias = model[1].bias.clone()
    train_step(model, fptt, x_seq, target, loss_fn=squared)
    state, count = fptt.state_dict(), len([*model.parameters()])
    assert set(state["average"]) == set(state["dual"]) == set(range(count - 1))
    with fptt.averaged():
        assert torch.equal(unused.detach(), torch.ones(2))
        assert torch.equal(model[1].bias, bias)


def test_a_group_added_later_takes_part():
    model, (x_seq, target) = LTCNet(), sequence()
    first, *others = model.parameters()
    optimizer = torch.optim.SGD([first], 0.1)
    fptt = FPTT(optimizer, 0.5)
    optimizer.add_param_group({"params": others})
    whole = LTCNet()
    reference = FPTT(torch.optim.SGD(whole.parameters(), 0.1), 0.5)
    for trained, by in ((model, fptt), (whole, reference)):
        for _ in range(2):
            train_step(trained, by, x_seq, target, loss_fn=squared)
    assert torch.equal(parameters(model), parameters(whole))


def test_averaged_gives_the_weights_back_after_an_error():
    model, (x_seq, target) = LTCNet(), sequence()
    fptt = FPTT(torch.optim.Adam(model.parameters(), 0.05), 0.5)
    train_step(model, fptt, x_seq, target, loss_fn=squared)
    before = parameters(model)
    with pytest.raises(ZeroDivisionError), fptt.averaged():
        averages = [v.flatten() for v in fptt.state_dict()["average"].values()]
        assert torch.equal(parameters(model), torch.cat(averages))
        assert (parameters(model) - before).norm() > 1e-3
        raise ZeroDivisionError
    assert torch.equal(parameters(model), before)


@pytest.mark.parametrize("form", FORMS)
def test_resume_continues_bit_for_bit(form):
    x_seq, target = sequence()

    def make():
        model = LTCNet("random")
        return model, FPTT(torch.optim.Adam(model.parameters(), 0.02), 0.5, parts=2, form=form)

    def run(model, fptt, updates):
        for update in updates:
            torch.manual_seed(update)
            train_step(model, fptt, x_seq, target, loss_fn=squared)
        return parameters(model)

    expected = run(*make(), range(4))
    model, fptt = make()
    run(model, fptt, range(2))
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "fptt": fptt.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    results = []
    for state in (saved["fptt"], {**saved["fptt"], "average": {}, "dual": {}}):
        model, fptt = make()
        model.load_state_dict(saved["model"])
        fptt.load_state_dict(state)
        results.append(run(model, fptt, range(2, 4)))
    assert torch.equal(results[0], expected)
    assert not torch.equal(results[1], expected)


def test_the_state_of_something_else_is_refused():
    fptt = FPTT(torch.optim.Adam(LTCNet().parameters(), 0.1), 0.5)
    other = FPTT(torch.optim.Adam(LTCNet(features=5).parameters(), 0.1), 0.5)
    train_step(LTCNet(features=5), other, *sequence(), loss_fn=squared)
    model = LTCNet(features=5)
    other = FPTT(torch.optim.Adam(model.parameters(), 0.1), 0.5)
    train_step(model, other, *sequence(), loss_fn=squared)
    for state in (fptt.optimizer.state_dict(), other.state_dict(), {}):
        with pytest.raises(InputError, match="not that of FPTT"):
            fptt.load_state_dict(state)


def test_an_ltc_network_learns_what_needs_memory():
    """The class is shown at the first of six steps only."""
    torch.manual_seed(0)
    model = nn.Sequential(LTCRecurrent(4, 24, start="zero"), nn.Linear(24, 4))
    model.prediction = "last"
    target = torch.arange(4).repeat(4)
    x_seq = torch.zeros(6, 16, 4)
    x_seq[0] = 3 * F.one_hot(target).float()
    fptt = FPTT(torch.optim.Adam(model.parameters(), 0.01), 0.5, parts=3)
    losses = [train_step(model, fptt, x_seq, target)[0].item() for _ in range(60)]
    assert losses[-1] < 0.5 * losses[0]
    with fptt.averaged():
        assert (learning.predict(model, x_seq).argmax(1) == target).all()


def test_bad_input_is_named():
    model, (x_seq, target) = LTCNet(), sequence()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for kwargs, words in (
        ({"form": "dual"}, 'form="dual"'),
        ({"alpha": 0.0}, "alpha=0.0"),
        ({"alpha": float("nan")}, "alpha=nan"),
        ({"beta": 1.5}, "beta=1.5"),
        ({"rho": -0.1}, "rho=-0.1"),
        ({"clip": 0}, "clip=0"),
        ({"parts": 0}, "parts=0"),
        ({"parts": 2.5}, "parts=2.5"),
        ({"alpha": "0.5"}, "alpha='0.5'"),
        ({"form": "grad", "beta": 0.4}, "no beta"),
    ):
        with pytest.raises(InputError, match=words):
            FPTT(optimizer, **{"alpha": 0.5, **kwargs})
    fptt = FPTT(optimizer, 0.5, parts=6)
    for kwargs, words in (
        ({}, "parts=6: x_seq has 5"),
        ({"update": "online"}, "update="),
        ({"backward_steps": 2}, "backward_steps"),
        ({"scaler": torch.amp.GradScaler("cpu")}, "scaler"),
    ):
        with pytest.raises(InputError, match=words):
            train_step(model, fptt, x_seq, target, loss_fn=squared, **kwargs)
    with pytest.raises(InputError, match="give FPTT to train_step"):
        learning.ottt_online_training(model, fptt, x_seq, target, squared, True)
