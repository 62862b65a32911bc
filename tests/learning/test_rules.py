"""The learning rules: what each one computes, exactly or in direction."""

import copy
import itertools
from functools import partial

import pytest
import timm
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional as sj_functional
from spikingjelly.activation_based import neuron as sj_neuron
from spikingjelly.activation_based import surrogate
from torch import nn

from benchmarks.measure import peak_bytes
from sj_ottt import InputError, layer, learning, set_rule
from sj_ottt._ops.ndot import NDOTState, advance_ndot
from sj_ottt.layer import synapse
from sj_ottt.learning.rules import RULES, rule_of
from sj_ottt.neuron import NDOTLIFNode, OTTTLIFNode, SLTTLIFNode
from tests.networks import relative_error

STEPS = 6


def chain(node=OTTTLIFNode, container=layer.OTTTSequential, last=True) -> nn.Sequential:
    """Two convolutions and a linear layer in float64, a neuron behind each."""
    torch.manual_seed(0)
    net = container(
        layer.Conv2d(2, 6, 3, padding=1),
        node(),
        layer.AvgPool2d(2),
        layer.Conv2d(6, 8, 3),
        node(),
        layer.Flatten(),
        layer.Linear(8 * 2 * 2, 4),
        *([node()] if last else []),
    ).double()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.6)
    return net


def sequence() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return 1.5 * torch.randn(STEPS, 5, 2, 8, 8).double(), torch.tensor([0, 1, 2, 3, 0])


def gradients(net: nn.Module, rule: str | None = None, **kwargs) -> dict[str, torch.Tensor]:
    """Gradients of one batch through `train_step` by a rule; refuses a silent network."""
    if rule is not None:
        set_rule(net, rule)
    net.zero_grad()
    learning.train_step(net, torch.optim.SGD(net.parameters(), 0.0), *sequence(), **kwargs)
    return alive(net)


def alive(net: nn.Module) -> dict[str, torch.Tensor]:
    grads = {k: p.grad.clone() for k, p in net.named_parameters()}
    assert all(g.norm() > 0 for g in grads.values())
    return grads


def plain_loop(net: nn.Module) -> dict[str, torch.Tensor]:
    """One backward pass per step, by nothing of ours."""
    net.zero_grad()
    x_seq, target = sequence()
    for x in x_seq:
        (learning.CrossEntropyMSE()(net(x), target) / STEPS).backward()
    learning.reset_state(net)
    return alive(net)


def largest_error(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max(relative_error(a[k], b[k]) for k in b)


def cosine(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    a, b = (torch.cat([g.flatten() for g in grads.values()]) for grads in (a, b))
    return F.cosine_similarity(a, b, dim=0).item()


# SLTT: the spike in place of the trace


@pytest.mark.parametrize("v_reset", [None, 0.0])
@pytest.mark.parametrize("decay_input", [False, True])
def test_sltt_is_spikingjellys(decay_input, v_reset):
    """Their node, our node in plain PyTorch's chain, and a switched OTTT network, in float64."""
    kwargs = {"tau": 1.7, "decay_input": decay_input, "v_reset": v_reset}
    theirs = plain_loop(chain(partial(sj_neuron.SLTTLIFNode, **kwargs), nn.Sequential))
    ours = plain_loop(chain(partial(SLTTLIFNode, **kwargs), nn.Sequential))
    assert largest_error(ours, theirs) < 1e-12
    for form in ("float32", "bfloat16"):
        net = chain(partial(OTTTLIFNode, **kwargs, trace_dtype=form))
        assert largest_error(gradients(set_rule(net, "sltt")), theirs) < 1e-12
        assert largest_error(gradients(set_rule(net, "ottt")), theirs) > 1e-2
    packed = set_rule(chain(partial(SLTTLIFNode, **kwargs)), "sltt")
    assert largest_error(gradients(packed), theirs) < 1e-12


def test_sltt_keeps_a_byte_for_any_tau():
    net = chain(partial(OTTTLIFNode, trace_dtype="packed"))
    set_rule(net, "sltt")
    net[1].tau = 3.0
    pair = net[1](torch.rand(4, 5).double() * 3)
    assert pair.trace.stored.dtype == torch.uint8
    assert torch.equal(pair.trace.decode(torch.double), pair.spike)
    spike, trace = net[1](torch.rand(4, 5).double() * 3)
    assert 0 < spike.mean() < 1 and torch.equal(trace, spike)
    with pytest.raises(InputError, match="needs tau=2"):
        set_rule(net, "ottt")
    assert rule_of(net).name == "sltt"  # nothing was changed


# BPTT: exact


@pytest.mark.parametrize("v_reset", [None, 0.0])
def test_bptt_is_autograd_through_time(v_reset):
    """Against SpikingJelly's LIF node in step mode "m", the reset detached, in float64."""
    node = partial(OTTTLIFNode, v_reset=v_reset)
    reference = chain(
        lambda: sj_neuron.LIFNode(2.0, False, 1.0, v_reset, surrogate.Sigmoid(), True),
        nn.Sequential,
    )
    sj_functional.set_step_mode(reference, "m")
    x_seq, target = sequence()
    loss = learning.CrossEntropyMSE()
    sum(loss(y, target) / STEPS for y in reference(x_seq)).backward()
    theirs = alive(reference)
    net = chain(node)
    assert largest_error(gradients(net, rule="bptt"), theirs) < 1e-12
    assert rule_of(net).name == "bptt"
    optimizer = torch.optim.SGD(net.parameters(), 0.0)
    total, logits = learning.train_step(net, optimizer, x_seq, target)
    sj_functional.reset_net(reference)
    outputs = reference(x_seq)
    assert relative_error(logits, outputs.sum(0)) < 1e-12
    assert relative_error(total, sum(loss(y, target) / STEPS for y in outputs)) < 1e-12
    assert not logits.requires_grad and not total.requires_grad
    net.zero_grad()
    sj_functional.set_step_mode(net, "m")
    sum(loss(y, target) / STEPS for y in net(x_seq)).backward()
    assert largest_error(alive(net), theirs) < 1e-12


def test_bptt_of_standardized_weights_makes_them_once(monkeypatch):
    calls = []
    real = synapse.scaled_weight_standardization
    monkeypatch.setattr(
        synapse, "scaled_weight_standardization", lambda *a: calls.append(1) or real(*a)
    )
    model = timm.create_model("test_ottt_vgg", rule="bptt").double()
    x, target = 3 * torch.randn(2, 3, 16, 16).double(), torch.tensor([0, 1])
    learning.train_step(model, torch.optim.SGD(model.parameters(), 0.0), x, target, steps=4)
    assert len(calls) == 3
    grads = alive(model)
    model.zero_grad()
    sum(learning.CrossEntropyMSE()(model(x), target) / 4 for _ in range(4)).backward()
    assert largest_error(alive(model), grads) < 1e-12


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


def test_only_bptt_keeps_time():
    def peak(rule: str, steps: int) -> int:
        model = timm.create_model("test_ottt_vgg", rule=rule)
        x, target = torch.randn(8, 3, 32, 32), torch.arange(8)
        optimizer = torch.optim.SGD(model.parameters(), 0.0)
        return peak_bytes(lambda: learning.train_step(model, optimizer, x, target, steps=steps))

    for rule in RULES:
        growth = peak(rule, 16) / peak(rule, 2)
        assert growth > 3 if rule == "bptt" else growth < 1.01


# NDOT: the trace decays by the membrane's own ratio


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        # e = v[t] / v[t-1] = 1/2 (from 0), -1/2, -3 -> -1/2, 0, 1/2 (from 0); one step late
        ("paper", [1.0, 0.5, 0.75, -0.375, 0.0, 0.5 * 0.0 + 1.0]),
        # q = v - s = -0.6, -0.2, -0.4, 0, 0.1, -0.7; e = 1/3, 2 -> 1/2, 0, inf -> 1/2, -7 -> -1/2
        ("code", [1.0, 1 / 3, 1 / 6 + 1, 0.0, 0.0, 1.0]),
    ],
)
def test_ndot_by_hand(variant, expected):
    v = torch.tensor([0.4, -0.2, 0.6, 0.0, 0.1, 0.3]).double()
    spike = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0, 1.0]).double()
    zero = torch.zeros(()).double()
    state, found, before = NDOTState(zero, zero), [], zero
    for t in range(6):
        constants = {"lam": 0.5, "v_threshold": 1.0, "variant": variant}
        state = advance_ndot(state, spike[t], before, v[t], **constants)
        before = v[t]
        found.append(state.trace)
    torch.testing.assert_close(torch.stack(found), torch.tensor(expected).double())


@pytest.mark.parametrize(("variant", "expected"), [("paper", 0.0), ("code", 0.5)])
def test_ndot_of_a_neuron_without_a_membrane(variant, expected):
    """0 / 0 is 0 in variant "paper" and lambda in variant "code"."""
    zero, one = torch.zeros(1), torch.ones(1)
    state = NDOTState(trace=one, memory=one if variant == "paper" else zero)
    constants = {"lam": 0.5, "v_threshold": 1.0, "variant": variant}
    for _ in range(2 if variant == "paper" else 1):  # its ratio is applied one step later
        state = advance_ndot(state, zero, zero, zero, **constants)
    assert state.trace.item() == expected


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_ndot_takes_its_trace_to_the_weight(variant):
    torch.manual_seed(2)
    node, linear = NDOTLIFNode(variant=variant), layer.Linear(7, 3).double()
    net = layer.OTTTSequential(node, linear)
    expected, states = torch.zeros(3, 7).double(), []
    for _ in range(STEPS):
        x, g = torch.randn(4, 7).double() + 0.5, torch.randn(4, 3).double()
        (net(x) * g).sum().backward()
        states.append(node.trace)
        expected += g.t() @ node.trace.trace
    assert relative_error(linear.weight.grad, expected) < 1e-12
    # The neuron's own steps lead to the trace of the function.
    again = copy.deepcopy(node)
    assert isinstance(again.trace, NDOTState) and again.rule.variant == variant
    if variant == "paper":
        left = [s.memory.abs().sum() / s.trace.abs().sum() for s in states]
        assert all(0.2 < share <= 0.5 for share in left)
    switched = set_rule(chain(), "ndot", variant)
    assert switched[1].rule.variant == variant and not isinstance(switched[1], NDOTLIFNode)
    assert (
        largest_error(gradients(switched), gradients(chain(partial(NDOTLIFNode, variant=variant))))
        < 1e-12
    )


# Switching


@pytest.mark.parametrize("update", ["accumulate", "online"])
@pytest.mark.parametrize("rule", ["ottt", "sltt", "ndot"])
@pytest.mark.parametrize("name", ["test_ottt_vgg", "test_ottt_nf_resnet"])
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


def test_switching_keeps_ndots_variant_unless_told():
    net = set_rule(chain(), "ndot", "code")
    found = gradients(net)
    assert largest_error(gradients(set_rule(set_rule(net, "ottt"), "ndot")), found) < 1e-12
    assert largest_error(gradients(set_rule(net, "ndot", "paper")), found) > 1e-3


def test_slttlifnode_of_any_tau_takes_the_rules_that_store_no_decaying_trace():
    node = partial(SLTTLIFNode, tau=1.5, decay_input=False, v_reset=None)
    same = partial(OTTTLIFNode, tau=1.5)
    for rule in ("bptt", "ndot"):
        assert (
            largest_error(gradients(chain(node), rule=rule), gradients(chain(same), rule=rule))
            < 1e-12
        )
    with pytest.raises(InputError, match="trace_dtype"):
        set_rule(chain(node), "ottt")
    found = gradients(chain(partial(node, trace_dtype="float32")), rule="ottt")
    assert largest_error(found, gradients(chain(same))) < 1e-12


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
