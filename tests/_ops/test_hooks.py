"""Backward hooks and SpikingJelly's monitors, in training, on what hands on pairs."""

import copy

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import layer as sj_layer
from spikingjelly.activation_based import learning as sj_learning
from spikingjelly.activation_based import monitor
from spikingjelly.activation_based import neuron as sj_neuron
from torch import nn

from sj_ottt import layer, learning, set_rule
from sj_ottt.layer import Pair
from sj_ottt.neuron import OTTTLIFNode
from tests.networks import relative_error

STEPS = 4


def network(ours: bool = True) -> nn.Module:
    torch.manual_seed(0)
    library, node = (layer, OTTTLIFNode) if ours else (sj_layer, sj_neuron.OTTTLIFNode)
    kwargs = {} if ours else {"decay_input": False, "v_reset": None}
    net = library.OTTTSequential(
        nn.Linear(6, 8), node(**kwargs), nn.Linear(8, 7), node(**kwargs), nn.Linear(7, 3)
    ).double()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.9)
    return net


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return 2 * torch.randn(STEPS, 5, 6).double(), torch.tensor([0, 1, 2, 0, 1])


def run(net: nn.Module) -> None:
    """Train as SpikingJelly's function, in a loop by hand."""
    x_seq, target = batch()
    for x in x_seq:
        F.cross_entropy(net(x), target).backward()


def test_monitors_see_what_they_see_in_spikingjellys_network():
    ours, theirs = network(), network(ours=False)
    found = []
    for net, kind in ((ours, OTTTLIFNode), (theirs, sj_neuron.OTTTLIFNode)):
        with (
            monitor.OutputMonitor(net, kind) as outputs,
            monitor.AttributeMonitor("v", False, net, kind) as membranes,
            monitor.InputMonitor(net, kind) as inputs,
        ):
            run(net)
        found.append((outputs, membranes, inputs))
    for name in ("1", "3"):
        for mine, other in zip(found[0][0][name], found[1][0][name], strict=True):
            assert isinstance(mine, Pair)
            for ours_, theirs_ in zip(mine, other, strict=True):
                torch.testing.assert_close(ours_, theirs_)
        for i in (1, 2):
            assert len(found[0][i][name]) == STEPS
            for mine, other in zip(found[0][i][name], found[1][i][name], strict=True):
                torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("rule", ["ottt", "sltt", "ndot", "bptt"])
@pytest.mark.parametrize("by_hand", [True, False])
def test_gradients_of_spikes_and_currents_reach_hooks_at_every_step(rule, by_hand):
    """They are those of autograd, written down by hooks on the tensors themselves."""
    net = set_rule(network(), rule)
    expected = {kind: {"1": [], "3": []} for kind in ("in", "out")}

    def note(kind: str, name: str, tensor: torch.Tensor) -> None:
        tensor.register_hook(expected[kind][name].append)

    def train(model: nn.Module) -> dict[str, torch.Tensor]:
        x_seq, target = batch()
        if by_hand and rule != "bptt":
            run(model)
        else:
            optimizer = torch.optim.SGD(model.parameters(), 0.0)
            learning.train_step(model, optimizer, x_seq, target)
        return {k: p.grad for k, p in model.named_parameters()}

    plain = copy.deepcopy(net)
    for name in ("1", "3"):
        node = plain.get_submodule(name)
        node.register_forward_pre_hook(lambda m, args, name=name: note("in", name, args[0]))
        node.register_forward_hook(
            lambda m, args, out, name=name: note("out", name, getattr(out, "spike", out))
        )
    grads = train(plain)
    pre = []
    net[1].register_full_backward_pre_hook(lambda m, grad: pre.append(grad[0]))
    with (
        monitor.GradInputMonitor(net, OTTTLIFNode) as inputs,
        monitor.GradOutputMonitor(net, OTTTLIFNode) as outputs,
    ):
        found = train(net)
    for k, g in grads.items():
        assert g.norm() > 0 and relative_error(found[k], g) < 1e-12
    for name in ("1", "3"):
        for seen, kind in ((inputs[name], "in"), (outputs[name], "out")):
            assert len(seen) == len(expected[kind][name]) == STEPS
            for a, b in zip(seen, expected[kind][name], strict=True):
                assert b.norm() > 0 and relative_error(a, b) < 1e-12
    assert all(torch.equal(a, b) for a, b in zip(pre, outputs["1"], strict=True))


@pytest.mark.parametrize("foreign", [False, True])
def test_synapses_and_chains_report_the_gradients_of_spikes(foreign):
    torch.manual_seed(0)
    net = layer.OTTTSequential(
        layer.OTTTSequential(layer.WSLinear(6, 8), OTTTLIFNode()),
        (nn if foreign else layer).Linear(8, 3),
    ).double()
    x_seq, target = batch()
    spikes, currents = [], []

    def note(seen: list[torch.Tensor]):
        def hook(module: nn.Module, args: object, out: Pair | torch.Tensor) -> None:
            getattr(out, "spike", out).register_hook(seen.append)

        return hook

    net[0][1].register_forward_hook(note(spikes))
    net.register_forward_hook(note(currents))
    seen, chain = [], []
    net[1].register_full_backward_hook(lambda m, gi, go: seen.append((gi[0], go[0])))
    net[0].register_full_backward_hook(lambda m, gi, go: chain.append(go[0]))
    optimizer = torch.optim.SGD(net.parameters(), 0.0)
    if foreign:
        with pytest.warns(UserWarning, match="no inputs require gradients"):
            learning.train_step(net, optimizer, x_seq, target)
    else:
        learning.train_step(net, optimizer, x_seq, target)
    assert len(seen) == len(chain) == len(spikes) == STEPS
    for (grad_in, grad_out), of_chain, of_spike, of_current in zip(
        seen, chain, spikes, currents, strict=True
    ):
        assert of_spike.norm() > 0
        assert torch.equal(of_chain, of_spike) and torch.equal(grad_out, of_current)
        assert grad_in is None if foreign else torch.equal(grad_in, of_spike)


def test_a_hook_may_change_the_gradient_of_a_pair():
    torch.manual_seed(0)
    net = layer.OTTTSequential(
        layer.Linear(6, 8), OTTTLIFNode(), layer.Scale(2.0), layer.Dropout(0.5), layer.Linear(8, 3)
    ).double()
    nn.init.normal_(net[0].weight)
    x = batch()[0][0]
    grads = []
    for hooked in (False, True):
        net.zero_grad()
        learning.reset_state(net)
        if hooked:
            net[2].register_full_backward_hook(lambda m, gi, go: (3 * gi[0],))
        torch.manual_seed(3)
        net(x).square().sum().backward()
        grads.append({k: p.grad.clone() for k, p in net.named_parameters()})
    assert grads[0]["0.weight"].norm() > 0
    assert relative_error(grads[1]["0.weight"], 3 * grads[0]["0.weight"]) < 1e-12
    assert torch.equal(grads[1]["4.weight"], grads[0]["4.weight"])


def test_spikingjellys_own_loop_takes_our_monitored_network():
    net = network()
    x_seq, target = batch()
    with monitor.GradOutputMonitor(net, OTTTLIFNode) as outputs:
        sj_learning.online_learning.ottt_online_training(
            net,
            torch.optim.SGD(net.parameters(), 0.0),
            x_seq.transpose(0, 1),
            target.expand(STEPS, -1).t(),
            F.cross_entropy,
            False,
        )
    assert len(outputs["3"]) == STEPS and all(g.norm() > 0 for g in outputs["3"])
