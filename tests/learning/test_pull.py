"""The pull towards the weights of a first stage."""

import copy

import pytest
import torch

from sj_ottt import InputError, learning
from tests.learning.networks import batch, network
from tests.networks import parameters


@pytest.mark.parametrize("update", ["accumulate", "online"])
@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_a_pull_is_a_term_of_the_loss(norm, update):
    """The update is that of the loss plus rho |W - W0|, whose gradient autograd gives."""
    net, (x_seq, target) = network().double(), batch()
    x_seq = x_seq.double()
    reference = {k: p.detach() + 0.1 * torch.randn_like(p) for k, p in net.named_parameters()}

    def term() -> torch.Tensor:
        away = [p - reference[k] for k, p in net.named_parameters()]
        return 0.3 * sum(a.square().sum() if norm == "l2" else a.abs().sum() for a in away)

    start = copy.deepcopy(net.state_dict())
    moved = []
    for pulled in (True, False):
        net.load_state_dict(start)
        optimizer = torch.optim.SGD(net.parameters(), 0.05)
        if pulled:
            optimizer.register_step_pre_hook(learning.Pull(net, reference, 0.3, norm))
        else:
            optimizer.register_step_pre_hook(lambda *_: term().backward())
        learning.train_step(net, optimizer, x_seq, target, update=update)
        moved.append(parameters(net))
    torch.testing.assert_close(*moved, rtol=1e-10, atol=1e-12)
    net.load_state_dict(start)
    learning.train_step(net, torch.optim.SGD(net.parameters(), 0.05), x_seq, target, update=update)
    assert (parameters(net) - moved[0]).norm() > 1e-3


def test_a_pull_refuses():
    net = network()
    weights = net.state_dict()
    for kwargs, words in (
        ({"reference": {}}, "reference has no "),
        ({"reference": {k: v.flatten()[:1] for k, v in weights.items()}}, "of shape"),
        ({"rho": -1.0}, "rho=-1.0"),
        ({"rho": float("nan")}, "rho=nan"),
        ({"norm": "l3"}, 'norm="l3"'),
    ):
        with pytest.raises(InputError, match=words):
            learning.Pull(**{"model": net, "reference": weights, "rho": 0.1, **kwargs})
