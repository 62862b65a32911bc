"""Gradients added up over calls, clipped and averaged; and a state that is carried on."""

import copy

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sj_ottt import InputError, learning, set_rule
from tests.learning.networks import batch, network
from tests.networks import parameters

RULES = ["ottt", "sltt", "ndot", "bptt"]


def double(rule="ottt"):
    return set_rule(network().double(), rule)


def data():
    x_seq, target = batch(steps=6)
    return x_seq.double(), target


def gradient(net):
    grad = torch.cat([p.grad.flatten() for p in net.parameters()])
    assert grad.norm() > 0
    return grad


def average_of(net):
    return AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9))


@pytest.mark.parametrize("rule", RULES)
def test_k_calls_are_one_update_with_their_mean_gradient(rule):
    x_seq, target = data()
    whole, parted = double(rule), double(rule)
    optimizers = [torch.optim.SGD(net.parameters(), 0.1) for net in (whole, parted)]
    learning.train_step(whole, optimizers[0], x_seq, target)
    before = parameters(parted)
    losses = []
    for i in range(2):
        assert torch.equal(parameters(parted), before)
        half = slice(2 * i, 2 * i + 2)
        loss, _ = learning.train_step(
            parted, optimizers[1], x_seq[:, half], target[half], accumulation=(i, 2)
        )
        losses.append(loss)
    torch.testing.assert_close(gradient(parted), gradient(whole), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(parameters(parted), parameters(whole))
    alone, _ = learning.train_step(double(rule), optimizers[0], x_seq[:, :2], target[:2])
    torch.testing.assert_close(losses[0], alone)  # not divided by k


@pytest.mark.parametrize("rule", RULES)
def test_a_clipped_gradient_has_the_norm_and_the_direction(rule):
    x_seq, target = data()
    free, clipped, loose = double(rule), double(rule), double(rule)
    for net, limit in ((free, None), (clipped, 1e-3), (loose, 1e3)):
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        learning.train_step(net, optimizer, x_seq, target, clip_norm=limit)
    norm = gradient(free).norm()
    torch.testing.assert_close(gradient(clipped), gradient(free) * 1e-3 / norm)
    assert torch.equal(gradient(loose), gradient(free))


@pytest.mark.parametrize("update", ["accumulate", "online"])
def test_clipping_and_averaging_come_with_each_update(update):
    """Against an optimizer that does both in hooks of its own."""
    x_seq, target = data()
    ours, theirs = double(), double()
    averages = [average_of(net) for net in (ours, theirs)]
    optimizers = [torch.optim.SGD(net.parameters(), 0.5) for net in (ours, theirs)]

    def clip(*args):
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.02)

    optimizers[1].register_step_pre_hook(clip)
    optimizers[1].register_step_post_hook(lambda *args: averages[1].update_parameters(theirs))
    for _ in range(2):
        learning.train_step(
            ours, optimizers[0], x_seq, target, update=update, clip_norm=0.02, ema=averages[0]
        )
        learning.train_step(theirs, optimizers[1], x_seq, target, update=update)
    assert averages[0].n_averaged == averages[1].n_averaged == (12 if update == "online" else 2)
    torch.testing.assert_close(parameters(ours), parameters(theirs), rtol=0, atol=1e-6)
    torch.testing.assert_close(parameters(averages[0]), parameters(averages[1]), rtol=0, atol=1e-6)
    assert not torch.allclose(parameters(averages[0]), parameters(ours))


def test_a_scaler_changes_nothing_but_the_scale():
    x_seq, target = data()
    plain, scaled = double(), double()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    averages = [average_of(plain), average_of(scaled)]
    for net, used, ema in zip((plain, scaled), (None, scaler), averages, strict=True):
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        for i in range(2):
            learning.train_step(
                net,
                optimizer,
                x_seq,
                target,
                scaler=used,
                accumulation=(i, 2),
                clip_norm=1e-3,
                ema=ema,
            )
    torch.testing.assert_close(parameters(scaled), parameters(plain))
    torch.testing.assert_close(parameters(averages[0]), parameters(averages[1]))


def test_an_overflow_under_a_scaler_leaves_out_update_and_average():
    x_seq, target = data()
    net = network()
    ema, before = average_of(net), parameters(net)
    scaler = torch.amp.GradScaler("cpu", init_scale=1e38)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with torch.autocast("cpu", torch.float16):
        learning.train_step(
            net, optimizer, x_seq.float(), target, scaler=scaler, clip_norm=1.0, ema=ema
        )
    assert torch.equal(parameters(net), before) and ema.n_averaged == 0


def test_a_norm_that_is_not_finite_changes_nothing():
    (x_seq, target), net = data(), double()
    net[0].weight.register_hook(lambda grad: grad * float("inf"))
    before, optimizer = parameters(net), torch.optim.SGD(net.parameters(), 0.1)
    with pytest.raises(InputError, match=r"the norm (nan|inf); no parameter was changed"):
        learning.train_step(net, optimizer, x_seq, target, clip_norm=1.0)
    assert torch.equal(parameters(net), before) and net[0].weight.grad is None


def test_what_is_refused_of_updates():
    (x_seq, target), net = data(), double()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    fptt = learning.FPTT(optimizer, alpha=0.5)

    def refuses(words, trainer=optimizer, **kwargs):
        with pytest.raises(InputError, match=words):
            learning.train_step(net, trainer, x_seq, target, **kwargs)

    refuses(r"accumulation=\(2, 2\)", accumulation=(2, 2))
    refuses("clip_norm=0.0", clip_norm=0.0)
    refuses("no average of the model", ema=net)
    refuses("no average of the model", ema=AveragedModel(net[:2]))
    refuses("knows no accumulation", accumulation=(0, 2), update="online")
    refuses("knows no accumulation", trainer=fptt, accumulation=(0, 2))
    refuses("knows no clip_norm .*its own clip", trainer=fptt, clip_norm=1.0)
    refuses("knows no ema .*averages of its own", trainer=fptt, ema=average_of(net))


@pytest.mark.parametrize("rule", ["ottt", "sltt", "ndot"])
def test_two_halves_that_carry_the_state_on_are_the_whole_sequence(rule):
    x_seq, target = data()
    whole, halves, broken = double(rule), double(rule), double(rule)
    learning.train_step(whole, torch.optim.SGD(whole.parameters(), 0.0), x_seq, target)
    for net, reset in ((halves, False), (broken, True)):
        optimizer = torch.optim.SGD(net.parameters(), 0.0)
        for i, half in enumerate(x_seq.chunk(2)):
            learning.train_step(net, optimizer, half, target, reset=reset, accumulation=(i, 2))
    torch.testing.assert_close(gradient(halves), gradient(whole), rtol=1e-12, atol=1e-14)
    assert not torch.allclose(gradient(broken), gradient(whole), rtol=1e-3)
    expected = learning.predict(whole, x_seq)
    learning.reset_state(halves)
    parts = [learning.predict(halves, half, reset=False) for half in x_seq.chunk(2)]
    torch.testing.assert_close(sum(parts), expected)


def test_through_time_a_carried_state_has_no_graph():
    """The second half's gradient is that from a state that is given."""
    x_seq, target = data()
    net = double("bptt")
    optimizer = torch.optim.SGD(net.parameters(), 0.0)
    first, second = x_seq.chunk(2)
    learning.train_step(net, optimizer, first, target, reset=False)
    assert not net[1].v.requires_grad
    start = net[1].v.clone()
    learning.train_step(net, optimizer, second, target, reset=False)
    by_hand = copy.deepcopy(double("bptt"))
    by_hand[1].v = start
    loss_fn = learning.CrossEntropyMSE()
    sum(loss_fn(by_hand(x), target) / 3 for x in second).backward()
    torch.testing.assert_close(gradient(net), gradient(by_hand), rtol=1e-12, atol=1e-14)


def test_training_goes_on_from_a_carried_prediction_under_sltt_only():
    x_seq, target = data()
    for rule in ("sltt", "ottt"):
        net = double(rule)
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        learning.predict(net, x_seq, reset=False)
        if rule == "sltt":
            learning.train_step(net, optimizer, x_seq, target, reset=False)
            continue
        with pytest.raises(InputError, match="comes from an evaluation and has no trace"):
            learning.train_step(net, optimizer, x_seq, target, reset=False)
    with pytest.raises(InputError, match="is that of 4 samples, and x_seq has 2"):
        learning.predict(net, x_seq[:, :2], reset=False)
