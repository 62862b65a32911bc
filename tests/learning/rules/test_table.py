"""All rules on one network: where they are exact, and the switch between them."""

import copy
import dataclasses
import itertools
import pickle

import pytest
import timm
import torch
from spikingjelly.activation_based import neuron as sj_neuron
from torch import nn

from benchmarks.measure import peak_bytes
from sj_ottt import InputError, layer, learning, set_rule
from sj_ottt.learning.rules import RULES, VARIANTS, find_rule, rule_of
from sj_ottt.neuron import NDOTLIFNode, OTTTLIFNode
from tests.learning.rules.networks import STEPS, chain, cosine, gradients, sequence
from tests.networks import largest_error, relative_error


@pytest.mark.slow
def test_a_rule_keeps_time_only_where_it_says_so():
    def peak(rule: str, steps: int) -> int:
        # In full precision, for a rule's trace need not fit into a byte.
        model = timm.create_model("test_ottt_vgg", rule=rule, neuron=OTTTLIFNode)
        x, target = torch.randn(8, 3, 32, 32), torch.arange(8)
        optimizer = torch.optim.SGD(model.parameters(), 0.0)
        return peak_bytes(lambda: learning.train_step(model, optimizer, x, target, steps=steps))

    for name, rule in RULES.items():
        growth = peak(name, 16) / peak(name, 2)
        assert growth > 3 if rule.through_time else growth < 1.01


@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_frozen_found_by_its_name_and_can_be_pickled(name):
    rule = find_rule(name)
    assert rule is RULES[name] and rule.name == name
    assert [find_rule(name, v).variant for v in VARIANTS[name]] == [*VARIANTS[name]]
    with pytest.raises(dataclasses.FrozenInstanceError):
        rule.name = "another"
    assert pickle.loads(pickle.dumps(set_rule(chain(), name)))[1].rule.name == name


def test_where_the_rules_are_exact():
    """Before a last leaky neuron OTTT's weight gradient is exact; below it is a direction."""
    exact = gradients(chain(), rule="bptt")
    found = {rule: gradients(chain(), rule=rule) for rule in ("ottt", "sltt", "ndot")}
    assert relative_error(found["ottt"]["6.weight"], exact["6.weight"]) < 1e-12
    assert relative_error(found["ottt"]["3.weight"], exact["3.weight"]) > 1e-2
    for rule in ("sltt", "ndot"):
        assert relative_error(found[rule]["6.weight"], exact["6.weight"]) > 1e-2
    for grads in found.values():
        assert 0.6 < cosine(grads, exact) < 0.99
        right = [(g.sign() == exact[k].sign()).double().mean() for k, g in grads.items()]
        assert min(right) > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("update", ["accumulate", "online"])
@pytest.mark.parametrize("rule", ["ottt", "sltt", "ndot"])
@pytest.mark.parametrize("name", ["test_ottt_vgg", "test_ottt_nf_resnet", "test_ottt_nf_resnetd"])
def test_any_rule_trains_a_model(name, rule, update):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=4, rule=rule, in_chans=2)
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    x = 2 * torch.randn(4, 2, 32, 32)
    losses = [
        learning.train_step(model, optimizer, x, torch.arange(4), steps=3, update=update)[0]
        for _ in range(12)
    ]
    assert rule_of(model).name == rule and losses[-1] < losses[0]
    assert weights.keys() == model.state_dict().keys()


def test_a_switch_keeps_the_weights_and_resets_the_state():
    net = chain()
    weights = copy.deepcopy(net.state_dict())
    net(sequence()[0][0])
    for rule in reversed(RULES):
        assert set_rule(net, rule) is net and rule_of(net).name == rule
        assert f"rule={rule}" in repr(net)
        assert all(m.v == 0.0 for m in net if isinstance(m, OTTTLIFNode))
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in weights.items())
    again = copy.deepcopy(set_rule(net, "sltt"))
    assert rule_of(again).name == "sltt"
    assert largest_error(gradients(net, rule="ottt"), gradients(chain())) == 0


@pytest.mark.parametrize("readout", ["traced", "exact"])
def test_readout(readout):
    """The exact readout's gradient is that of BPTT, whose classifier has no membrane."""
    torch.manual_seed(0)
    model = timm.create_model("test_ottt_vgg", num_classes=4, readout=readout).double()
    x, target = 3 * torch.randn(3, 3, 16, 16).double(), torch.tensor([0, 1, 3])
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    grads = []
    for rule in ("ottt", "bptt"):
        learning.train_step(set_rule(model, rule), optimizer, x, target, steps=5)
        grads.append(model.fc.weight.grad.clone())
    error = relative_error(*grads)
    assert error < 1e-12 if readout == "exact" else error > 1e-2


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: set_rule(chain(), "slt"), "did you mean sltt"),
        (lambda: gradients(chain(), rule="fptt"), r"sj_ottt.learning.FPTT\(optimizer"),
        (lambda: set_rule(chain(), "ndot", "papr"), 'variant="papr" is unknown'),
        (lambda: NDOTLIFNode(variant="x"), 'variant="x" is unknown'),
        (lambda: set_rule(nn.Linear(2, 2), "sltt"), "Linear has no neuron of sj_ottt"),
        (lambda: timm.create_model("test_ottt_vgg", rule="x"), 'rule="x" is unknown'),
        (lambda: timm.create_model("test_ottt_vgg", readout="x"), 'readout="x" is unknown'),
        (lambda: gradients(chain(), rule="x"), 'rule="x" is unknown'),
        (lambda: gradients(chain(), rule="bptt", update="online"), "knows no online update"),
        (lambda: gradients(chain(), rule="bptt", backward_steps=2), "knows no backward_steps"),
        (lambda: gradients(chain(), backward_steps=STEPS + 1), "6 time steps; give 1 to 6"),
        (lambda: mixed()(sequence()[0][0]) and rule_of(mixed()), "BPTT needs all of them"),
    ],
)
def test_refusals(call, words):
    with pytest.raises(InputError, match=words):
        call()


def test_a_mixed_network_is_brought_to_one_rule():
    for first, other in (("ndot", "ottt"), ("bptt", "ottt"), ("ottt", "bptt")):
        net = chain()
        set_rule(net[1], first)
        found = gradients(net, rule=other)
        assert {m.rule.name for m in net if isinstance(m, OTTTLIFNode)} == {other}
        assert largest_error(found, gradients(chain(), rule=other)) < 1e-12


def test_neurons_of_spikingjelly_follow_ottt():
    net = layer.OTTTSequential(layer.Linear(4, 3), sj_neuron.OTTTLIFNode(), layer.Linear(3, 2))
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    x_seq, target = torch.rand(3, 2, 4), torch.tensor([0, 1])
    loss, _ = learning.train_step(net, optimizer, x_seq, target)
    assert loss.isfinite()
    with pytest.raises(InputError, match="no neuron of sj_ottt"):
        set_rule(net, "sltt")


def mixed() -> nn.Module:
    net = chain()
    set_rule(net[1], "bptt")
    return net


@pytest.mark.parametrize("rule", ["ottt", "sltt", "ndot"])
def test_some_backward_steps(rule, monkeypatch):
    """Over all draws of K = 2 from T = 6, each step comes five times in fifteen."""
    whole = gradients(chain(), rule=rule)
    assert largest_error(gradients(chain(), rule=rule, backward_steps=STEPS), whole) < 1e-12
    draws = [torch.tensor(d) for d in itertools.combinations(range(STEPS), 2)]
    net, remaining = set_rule(chain(), rule), iter(draws)
    monkeypatch.setattr(torch, "randperm", lambda n: next(remaining))
    found = [gradients(net, backward_steps=2) for _ in draws]
    assert largest_error({k: sum(g[k] for g in found) / 5 for k in whole}, whole) < 1e-12
    assert largest_error(found[0], found[1]) > 1e-2
