"""A backward pass on some of the steps."""

import pytest
import torch
from torch import nn

from sj_ottt import InputError, learning
from sj_ottt.layer import step_weights
from tests.every_layer import network, train
from tests.networks import largest_error, relative_error


@pytest.mark.parametrize("update", ["accumulate", "online"])
def test_backward_on_all_steps_is_the_default(update):
    expected = train(network("packed"), update=update)
    assert largest_error(train(network("packed"), update=update, backward_steps=6), expected) == 0


def test_backward_on_k_of_t_steps_adds_the_gradients_of_k_steps():
    """Over all ways to leave one step out, each step is counted T − 1 times."""
    net, steps = network("packed"), 3
    full = train(net, steps)
    parts = []
    for kept in ([0, 1], [0, 2], [1, 2]):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "randperm", lambda n, kept=kept: torch.tensor(kept))
            parts.append(train(net, steps, backward_steps=2))
    for k, g in full.items():
        assert relative_error(sum(part[k] for part in parts), 2 * g) < 1e-12
    assert largest_error(parts[0], full) > 1e-3


def test_backward_steps_are_drawn_anew_and_counted(monkeypatch):
    net, backwards = network("packed"), []
    real = step_weights.MadeWeight.add
    monkeypatch.setattr(
        step_weights.MadeWeight, "add", lambda *args: backwards.append(args[0]) or real(*args)
    )
    grads = [train_with_seed(net, seed) for seed in range(6)]
    assert len(backwards) == 6 * 2 * 5  # batches, K, synapses
    norms = {round(g["0.weight"].norm().item(), 9) for g in grads}
    assert len(norms) > 1
    assert largest_error(train_with_seed(net, 3), grads[3]) == 0


def train_with_seed(net: nn.Module, seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    x_seq = 2 * torch.randn(6, 3, 2, 13, 13).double()
    net.zero_grad()
    torch.manual_seed(seed)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    learning.train_step(net, optimizer, x_seq, torch.tensor([0, 1, 3]), backward_steps=2)
    return {k: p.grad.clone() for k, p in net.named_parameters()}


@pytest.mark.parametrize("k", [0, 7])
def test_more_backward_steps_than_there_are_steps(k):
    with pytest.raises(InputError, match=f"backward_steps={k}: x_seq has 6 time steps"):
        train(network(), backward_steps=k)
