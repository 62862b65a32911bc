"""The passes of FPTT: where parts begin and end, the second pass of form "grad", and bad losses."""

import copy

import pytest
import torch
from torch import nn

from sj_ottt import InputError, learning
from sj_ottt.learning import FPTT, train_step
from sj_ottt.neuron import LTCConvNode
from tests.learning.networks import LTCNet, sequence, squared
from tests.networks import parameters, peak_saved_bytes


def gradients(model):
    return [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize(("parts", "entry"), [(1, 0), (2, 3), (5, 4)])
def test_gradient_of_the_last_part_stops_at_its_entry(parts, entry):
    """T = 5 in two parts: steps 0-2 and 3-4. The state goes on, its gradient does not."""
    model, (x_seq, target) = LTCNet(), sequence()
    fptt = FPTT(torch.optim.SGD(model.parameters(), 0.0), 0.1, clip=None, parts=parts)
    _, output = train_step(model, fptt, x_seq, target, loss_fn=squared)
    found = gradients(model)
    results = []
    for cut in (entry, (entry + 1) % 5):
        learning.reset_state(model)
        model.zero_grad()
        for t, x in enumerate(x_seq):
            if t == cut:
                model[0].detach()
            y = model(x)
        squared(y, target).backward()
        results.append(gradients(model))
    torch.testing.assert_close(output, y.detach())
    torch.testing.assert_close(found, results[0], rtol=1e-10, atol=1e-12)
    assert all(g.norm() > 0 for g in found)
    away = [(f - g).norm() for f, g in zip(found, results[1], strict=True)]
    assert max(away) > 1e-6


def test_every_step_is_trained_and_parts_differ_by_one_step():
    model, (x_seq, target) = LTCNet(), sequence(steps=8)
    calls, ends, weights = [], [], []
    model.register_forward_hook(lambda *_: calls.append(1))

    def loss_fn(output, target):
        ends.append(len(calls))
        return squared(output, target)

    def weight(p, n):
        weights.append((p, n))
        return 1.0

    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    fptt = FPTT(optimizer, 0.1, parts=3, weight=weight)
    train_step(model, fptt, x_seq, target, loss_fn=loss_fn)
    assert ends == [3, 6, 8] and list(dict.fromkeys(weights)) == [(0, 3), (1, 3), (2, 3)]
    shares = [FPTT(optimizer, 0.1).weighted(torch.ones(()), None, None, p, 4) for p in range(4)]
    assert shares == [0.25, 0.5, 0.75, 1.0]


def test_the_returned_loss_is_the_mean_of_the_parts_by_their_weights():
    model, (x_seq, target) = LTCNet(), sequence(6)
    losses = []

    def loss_fn(output, target):
        losses.append(squared(output, target))
        return losses[-1]

    fptt = FPTT(torch.optim.SGD(model.parameters(), 0.0), 0.5, parts=3)
    loss, _ = train_step(model, fptt, x_seq, target, loss_fn=loss_fn)
    a, b, c = losses
    assert loss.item() == pytest.approx(((a + 2 * b + 3 * c) / 6).item())
    # With an auxiliary term the weights of both make 1 in each part.
    fptt = FPTT(
        torch.optim.SGD(model.parameters(), 0.0), 0.5, parts=3, auxiliary=lambda y, target: 1.0
    )
    loss, _ = train_step(model, fptt, x_seq, target, loss_fn=lambda y, t: 0 * y.sum() + 1.0)
    assert loss.item() == pytest.approx(1.0)


class Noisy(nn.Module):
    """Everything that a second pass could disturb: random start, dropout, batch statistics."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.node, self.drop, self.fc = LTCConvNode(4), nn.Dropout(0.3), nn.Linear(64, 1)
        self.double()

    def forward(self, x):
        return self.fc(self.drop(self.node(self.norm(self.conv(x))).flatten(1)))


def test_the_second_pass_repeats_the_first_and_leaves_no_mark():
    """At a learning rate of 0 its gradient is the first one's, which is Λ after one part."""
    x_seq, target = torch.rand(3, 4, 1, 4, 4).double(), torch.zeros(4).double()
    marks = []
    for form in ("lambda", "grad"):
        model, seen = Noisy(), []
        optimizer = torch.optim.SGD(model.parameters(), 0.0)
        optimizer.register_step_pre_hook(lambda *_, m=model, s=seen: s.append(gradients(m)))
        fptt = FPTT(optimizer, 0.5, clip=None, parts=1, form=form)
        torch.manual_seed(2)
        train_step(model, fptt, x_seq, target, loss_fn=squared)
        marks.append((*model.buffers(), torch.get_rng_state()))
    dual = [*fptt.state_dict()["dual"].values()]
    torch.testing.assert_close(dual, seen[0], rtol=0, atol=0)
    assert all(g.norm() > 0 for g in seen[0])
    assert model.norm.num_batches_tracked == 3
    torch.testing.assert_close(*marks, rtol=0, atol=0)


def test_the_sequence_goes_on_from_the_first_pass():
    """The second pass of a part starts where the first did; the next part where the first ended."""
    model, (x_seq, target) = LTCNet(), sequence(steps=2)
    entered, left = [], []
    model[0].register_forward_pre_hook(lambda node, _: entered.append(node.v))
    model[0].register_forward_hook(lambda node, *_: left.append(node.v.detach().clone()))
    fptt = FPTT(torch.optim.SGD(model.parameters(), 0.5), 0.5, form="grad")
    train_step(model, fptt, x_seq, target, loss_fn=squared)
    assert len(entered) == 4 and entered[0] is None and entered[1] is None
    for value in entered[2:]:
        assert torch.equal(value, left[0]) and not torch.equal(value, left[1])


@pytest.mark.parametrize("wrong", ["loss", "gradient"])
def test_what_is_not_finite_changes_nothing(wrong):
    model, (x_seq, target) = LTCNet(), sequence()
    fptt = FPTT(torch.optim.SGD(model.parameters(), 0.0), 0.5, parts=2)
    before, calls, moved = parameters(model), [], []

    def loss_fn(output, target):
        calls.append(1)
        moved.append(copy.deepcopy(fptt.state_dict()))
        loss = squared(output, target)
        if len(calls) < 2:
            return loss
        # The root has an infinite slope at 0, where the loss itself is finite.
        return loss * float("nan") if wrong == "loss" else (loss * 0).sqrt()

    with pytest.raises(InputError, match="time step 4 is nan" if wrong == "loss" else "norm nan"):
        train_step(model, fptt, x_seq, target, loss_fn=loss_fn)
    assert torch.equal(parameters(model), before)
    for key in ("average", "dual"):
        now = fptt.state_dict()[key]
        assert now and all(torch.equal(moved[1][key][i], value) for i, value in now.items())
    assert all(p.grad is None for p in model.parameters())
    assert model[0].v is None


@pytest.mark.parametrize("wrong", ["loss", "gradient"])
def test_a_second_pass_that_is_not_finite_keeps_the_averages(wrong):
    model, (x_seq, target) = LTCNet(), sequence()
    fptt = FPTT(torch.optim.SGD(model.parameters(), 0.1), 0.5, parts=2, form="grad")
    calls, states = [], []

    def loss_fn(output, target):
        calls.append(1)
        states.append(copy.deepcopy(fptt.state_dict()))
        loss = squared(output, target)
        if len(calls) < 4:  # the second pass of the second part
            return loss
        return loss * float("nan") if wrong == "loss" else (loss * 0).sqrt()

    with pytest.raises(InputError, match="time step 4 is nan" if wrong == "loss" else "norm nan"):
        train_step(model, fptt, x_seq, target, loss_fn=loss_fn)
    assert parameters(model).isfinite().all()
    for key in ("average", "dual"):
        now = fptt.state_dict()[key]
        assert now and all(torch.equal(states[2][key][i], value) for i, value in now.items())


def saved_bytes(steps, parts):
    model = LTCNet()
    fptt = FPTT(torch.optim.SGD(model.parameters(), 0.1), 0.5, parts=parts)
    return peak_saved_bytes(lambda: train_step(model, fptt, *sequence(steps), loss_fn=squared))


def test_graph_memory_is_flat_in_the_number_of_steps():
    assert saved_bytes(64, None) == saved_bytes(4, None) > 0
    assert saved_bytes(64, 8) == saved_bytes(8, 1)
    assert saved_bytes(64, 1) > 10 * saved_bytes(4, 1)
