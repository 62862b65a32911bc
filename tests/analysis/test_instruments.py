"""The instruments, against hand-computed values, SpikingJelly's counter, and autograd."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import surrogate
from spikingjelly.activation_based.op_counter import DispatchCounterMode, SynOpCounter
from torch import nn

from sj_ottt import InputError, analysis, layer, learning, plots, set_rule
from sj_ottt.analysis import gradients
from sj_ottt.analysis.synapse_records import record_synapses
from sj_ottt.layer.synapse import Synapse
from sj_ottt.neuron import LeakyReadout, LTCNode, MembraneReadout, OTTTLIFNode, SLTTLIFNode
from tests.networks import relative_error

STEPS = 6


def network(node=OTTTLIFNode, std=0.7, **kwargs) -> nn.Sequential:
    torch.manual_seed(0)
    net = layer.OTTTSequential(
        layer.Conv2d(2, 5, 3, padding=1),
        node(**kwargs),
        layer.Conv2d(5, 6, 3, stride=2, padding=1, bias=False),
        node(**kwargs),
        layer.Flatten(),
        layer.Linear(6 * 4 * 4, 7),
        node(**kwargs),
        layer.Linear(7, 4),
    ).double()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=std)
    return net


def batch(static=False) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    x_seq = 2 * torch.randn(STEPS, 5, 2, 8, 8).double()
    return (x_seq[:1].expand_as(x_seq) if static else x_seq), torch.tensor([0, 1, 2, 3, 0])


@pytest.fixture
def untouched():
    """Nothing that an instrument is given changes."""
    net = network().train()
    before = copy.deepcopy(net.state_dict())
    yield net
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert net.training and all(p.grad is None for p in net.parameters())
    assert all(m.rule.name == "ottt" and m.v == 0.0 for m in net if isinstance(m, OTTTLIFNode))
    assert all(m.step_weight is None for m in net if isinstance(m, Synapse))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_firing_rates_by_hand():
    """I = 0.6 fires at steps 3 and 5 of 6 (u = 0.6, 0.9, 1.05, 0.625, 0.9125, 1.056)."""
    net = nn.Sequential(OTTTLIFNode(), nn.Identity(), OTTTLIFNode(v_threshold=0.5))
    rates = analysis.firing_rates(net, torch.full((6, 2, 3), 0.6))
    assert rates["0"] == pytest.approx(2 / 6)
    assert rates["2"] == pytest.approx(2 / 6)
    assert rates["mean"] == pytest.approx(2 / 6)


def test_synaptic_operations_are_spikingjellys(untouched):
    x_seq, _ = batch()
    ours = analysis.synaptic_operations(untouched, x_seq)
    assert list(ours) == ["2", "5", "7", "total"]
    counter, net = SynOpCounter(), copy.deepcopy(untouched).eval()
    with torch.no_grad(), DispatchCounterMode([counter]):
        for x in x_seq:
            net(x)
    assert ours["total"] * x_seq.shape[1] == counter.get_total() > 0
    assert ours["total"] == pytest.approx(sum(v for k, v in ours.items() if k != "total"))


def test_synaptic_operations_of_models_and_rules():
    """Factors and pools on the way do not hide spikes; the readout of NF-ResNet sees none."""
    x_seq = 3 * torch.randn(2, 3, 3, 32, 32)
    found = analysis.synaptic_operations(timm.create_model("test_ottt_vgg", rule="bptt"), x_seq)
    assert list(found) == ["layer2.1", "layer3.1", "fc", "total"]
    model = timm.create_model("test_ottt_nf_resnet", neuron=SLTTLIFNode)
    assert not {"stem", "fc"} & set(analysis.synaptic_operations(model, x_seq))


def test_latency_curve(untouched):
    x_seq, target = batch()
    curve = analysis.latency_curve(untouched, x_seq, target)
    for t in range(1, STEPS + 1):
        right = learning.predict(untouched, x_seq[:t]).argmax(1) == target
        assert curve[t - 1] == pytest.approx(right.double().mean().item())
    assert len(curve) == STEPS


def test_alignment(untouched):
    x_seq, target = batch()
    rows = analysis.gradient_alignment(untouched, x_seq, target, ("ottt", "sltt", "bptt"))
    assert len(rows) == 3 * 2 * (7 + 1)
    grads = {}
    for rule in ("ottt", "bptt"):
        net = network()
        set_rule(net, rule)
        learning.train_step(net, torch.optim.SGD(net.parameters(), 0.0), x_seq, target)
        grads[rule] = torch.cat([p.grad.flatten() for p in net.parameters()])
    found = {(r["rule"], r["against"], r["parameter"]): r for r in rows}
    row = found["ottt", "bptt", "all"]
    assert row["cosine"] == pytest.approx(F.cosine_similarity(*grads.values(), dim=0).item())
    assert row["relative_error"] == pytest.approx(relative_error(grads["ottt"], grads["bptt"]))
    agree = grads["ottt"].sign() == grads["bptt"].sign()
    assert row["sign_agreement"] == pytest.approx(agree.double().mean().item())
    itself = found["bptt", "bptt", "all"]
    assert itself["cosine"] == pytest.approx(1) and itself["relative_error"] < 1e-12
    assert found["sltt", "bptt", "all"]["relative_error"] > 1e-2
    still = analysis.gradient_alignment(untouched, *batch(static=True), ("ottt",))
    assert still[-1]["against"] == "spike representation" and still[-1]["parameter"] == "all"
    assert still[-1]["cosine"] > found["ottt", "spike representation", "all"]["cosine"] > 0
    assert still[-1]["cosine"] > 0.3


def test_spike_representation_by_hand():
    """d = 1 where 0 < W x < V_th, the gradient of W is (d * (R^T g)) x^T at the real rates."""
    torch.manual_seed(3)
    net = layer.OTTTSequential(layer.Linear(6, 9), OTTTLIFNode(), layer.Linear(9, 4)).double()
    x_seq, target = torch.rand(STEPS, 5, 6).double(), torch.tensor([0, 1, 2, 3, 0])
    nn.init.normal_(net[0].weight, std=0.8)
    found = gradients._representation_gradients(net, x_seq, target, F.cross_entropy)
    weights = 0.5 ** torch.arange(STEPS - 1, -1, -1).double()
    weights /= weights.sum()
    v, rate, x = torch.zeros(5, 9).double(), 0.0, torch.tensordot(weights, x_seq, 1)
    with torch.no_grad():
        for w, x_t in zip(weights, x_seq, strict=True):
            u = 0.5 * v + net[0](x_t)
            spike = (u >= 1).double()
            v, rate = u - spike, rate + w * spike
        assert 0 < rate.mean() < 1
        current = net[0](x)
        error = (net[2](rate).softmax(1) - F.one_hot(target, 4)) / 5
        g = (error @ net[2].weight) * ((current > 0) & (current < 1))
    assert relative_error(found["2.weight"], error.t() @ rate) < 1e-12
    assert relative_error(found["0.weight"], g.t() @ x) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("function", [surrogate.Sigmoid, lambda: surrogate.Rect(alpha=0.5)])
def test_theorem1(function):
    """Where the condition holds, so does the promise; the condition can fail, and does."""
    rows = []
    for seed in range(8):
        for static in (True, False):
            net = network(surrogate_function=function())
            torch.manual_seed(seed)
            for parameter in net.parameters():
                nn.init.normal_(parameter, std=0.6)
            x_seq, target = batch(static)
            rows += analysis.theorem1(net, x_seq + seed / 8, target)
    holds = [row for row in rows if row["holds"]]
    assert len(rows) == 48 and 5 < len(holds) < 43
    assert all(row["inner_product"] > 0 and row["cosine"] > 0 for row in holds)
    assert all((row["left"] < row["right"]) == row["holds"] for row in rows)


def test_theorem1_compares_ottts_gradient(untouched):
    """What it calls OTTT's gradient is what training computes."""
    x_seq, target = batch()
    records = record_synapses(untouched, x_seq, target, None)
    net = network()
    learning.train_step(net, torch.optim.SGD(net.parameters(), 0.0), x_seq, target)
    for name in ("2", "5", "7"):
        traces = [a for a, _ in records[name].steps]
        ours = records[name].gradient(traces) / STEPS
        assert relative_error(ours, net.get_parameter(f"{name}.weight").grad) < 1e-12


@pytest.mark.parametrize("kwargs", [{}, {"v_reset": 0.0, "tau": 1.5}, {"decay_input": True}])
def test_three_factors_make_the_gradient(kwargs):
    net, (x_seq, target) = network(**kwargs, std=1.2), batch()
    learning.train_step(net, torch.optim.SGD(net.parameters(), 0.0), x_seq, target)
    for name in ("2", "5"):
        factors = analysis.three_factor(net, name, x_seq, target)
        grad = net.get_parameter(f"{name}.weight").grad
        assert grad.norm() > 0 and relative_error(factors["update"], grad) < 1e-12
    product = torch.einsum(
        "tni,tno->oi", factors["presynaptic"], factors["postsynaptic"] * factors["error"]
    )
    assert relative_error(product, factors["update"]) < 1e-12
    late = analysis.three_factor(net, "5", x_seq, target, delay=2)
    product = torch.einsum(
        "tni,tno->oi", late["presynaptic"][2:], late["postsynaptic"][2:] * late["error"][:-2]
    )
    assert relative_error(product, late["update"]) < 1e-12
    assert relative_error(late["update"], factors["update"]) > 1e-2


def test_instruments_of_a_network_with_feedback():
    torch.manual_seed(0)
    model = timm.create_model("test_ottt_vggf", num_classes=4).double()
    nn.init.normal_(model.feedback.synapse.weight, std=0.1)
    x_seq, target = 3 * torch.randn(4, 3, 3, 32, 32).double(), torch.tensor([0, 1, 3])
    operations = analysis.synaptic_operations(model, x_seq)
    inputs = []
    net = copy.deepcopy(model)
    net.feedback.synapse.register_forward_hook(lambda _, args, out: inputs.append(args[0]))
    learning.predict(net, x_seq)
    assert len(inputs) == 3  # it is silent in the first of the four steps
    met = sum(F.unfold((x != 0).double(), 3, padding=1).sum() for x in inputs) * 8
    assert operations["feedback.synapse"] == pytest.approx(met.item() / 3) and met > 0
    rows = analysis.gradient_alignment(model, x_seq, target)
    found = {(r["rule"], r["against"], r["parameter"]): r["cosine"] for r in rows}
    for against in ("bptt", "spike representation"):
        assert 0 < found["ottt", against, "feedback.synapse.weight"] < 1
    # Fed forward alone, the network has the gradients of one without feedback.
    nn.init.zeros_(model.feedback.synapse.weight)
    plain = timm.create_model("test_ottt_vgg", num_classes=4).double()
    plain.load_state_dict(model.state_dict(), strict=False)
    parts = [analysis.gradient_alignment(net, x_seq, target, ("sltt",)) for net in (model, plain)]
    ours, theirs = (
        {(r["against"], r["parameter"]): r["cosine"] for r in part if r["parameter"] != "all"}
        for part in parts
    )
    assert all(ours[key] == pytest.approx(value) for key, value in theirs.items())
    assert len(ours) == len(theirs) + 2
    one_step = analysis.gradient_alignment(model, x_seq[:1], target, ("ottt",))
    cosines = {(r["against"], r["parameter"]): r["cosine"] for r in one_step}
    assert cosines["spike representation", "feedback.synapse.weight"] is None
    assert cosines["spike representation", "all"] > 0
    layers = [row["layer"] for row in analysis.theorem1(model, x_seq, target)]
    assert layers == [row["layer"] for row in analysis.theorem1(plain, x_seq, target)]
    assert analysis.three_factor(model, "layer2.1", x_seq, target)["update"].any()
    with pytest.raises(InputError, match="a feedback may be added to its output"):
        analysis.three_factor(model, "feedback.synapse", x_seq, target)


def test_layers_of_pytorch_are_seen_or_named():
    """Synaptic operations need no layer of ours, a record of what reaches one does."""
    x_seq, target = batch()
    ours = network()
    foreign = layer.OTTTSequential(
        nn.Conv2d(2, 5, 3, padding=1),
        OTTTLIFNode(),
        nn.Conv2d(5, 6, 3, stride=2, padding=1, bias=False),
        OTTTLIFNode(),
        nn.Flatten(),
        nn.Linear(6 * 4 * 4, 7),
        OTTTLIFNode(),
        nn.Linear(7, 4),
    ).double()
    foreign.load_state_dict(ours.state_dict())
    plain = nn.Sequential(
        *(
            SLTTLIFNode(2.0, False, 1.0, None) if i in (1, 3, 6) else m
            for i, m in enumerate(foreign)
        )
    )
    expected = analysis.synaptic_operations(ours, x_seq)
    for net in (foreign, plain):
        assert analysis.synaptic_operations(net, x_seq) == expected
        with pytest.raises(InputError, match="2, 5, 7: sees spikes, but only layers"):
            analysis.theorem1(net, x_seq, target)
    rows, expected = (
        analysis.gradient_alignment(net, x_seq, target, ("ottt", "sltt")) for net in (foreign, ours)
    )
    assert [r["cosine"] for r in rows] == pytest.approx([r["cosine"] for r in expected])


def test_a_zero_gradient_agrees_with_nothing():
    x_seq, target = batch()
    net = network()
    nn.init.zeros_(net[7].weight)
    rows = analysis.gradient_alignment(net, x_seq, target, ("ottt",))
    found = {(r["against"], r["parameter"]): r for r in rows}
    assert found["bptt", "7.weight"]["cosine"] > 0
    measures = ("cosine", "sign_agreement", "relative_error")
    assert [found["bptt", "0.weight"][name] for name in measures] == [None] * 3
    assert plots.alignment(rows).startswith(b"\x89PNG")
    none = [{**row, "cosine": None} for row in rows]
    assert plots.alignment(none).startswith(b"\x89PNG")


class Shortcut(nn.Module):
    """Adds the spikes of its input to its own, in place."""

    def __init__(self):
        super().__init__()
        self.linear, self.neuron = layer.Linear(5, 5), SLTTLIFNode()

    def forward(self, x):
        out = self.neuron(self.linear(x))
        out += x
        return out


def test_spikes_may_be_added_in_place():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5), SLTTLIFNode(), Shortcut(), nn.Linear(5, 2))
    found = analysis.synaptic_operations(net, 3 * torch.rand(4, 2, 3))
    assert list(found) == ["2.linear", "3", "total"]


def test_a_network_whose_only_synapse_behind_neurons_is_exact():
    net = timm.create_model("test_ottt_vgg", num_classes=4, readout="exact")
    net.layer2, net.layer3 = nn.Identity(), nn.Identity()
    net.fc = layer.Linear(8, 4)
    nn.init.normal_(net.layer1[0].weight)
    x_seq, target = 3 * torch.randn(4, 3, 3, 32, 32), torch.tensor([0, 1, 3])
    with pytest.raises(InputError, match="no layer whose gradient takes the trace"):
        analysis.theorem1(net, x_seq, target)


def test_instruments_of_a_membrane_readout():
    """Its synapse is seen, its trace is its own, and a mean is one step of it."""
    net = network()
    with_membrane = copy.deepcopy(net)
    with_membrane[-1] = MembraneReadout(copy.deepcopy(net[-1]))
    args = batch(), learning.CrossEntropyMSE()
    plain, found = (
        gradients._representation_gradients(each, *args[0], args[1])
        for each in (net, with_membrane)
    )
    assert plain["7.weight"].norm() > 0
    assert all(torch.equal(a, b) for a, b in zip(plain.values(), found.values(), strict=True))
    names = [row["layer"] for row in analysis.theorem1(with_membrane, *batch())]
    assert names == ["2", "5", "7.synapse"]
    assert set(analysis.synaptic_operations(with_membrane, batch()[0])) == {*names, "total"}
    with_membrane[-1].tau = 3.0
    with pytest.raises(InputError, match="have several"):
        analysis.theorem1(with_membrane, *batch())
    resnet = timm.create_model("test_ottt_nf_resnet", readout="membrane")
    nn.init.normal_(resnet.fc.weight)
    for name, p in resnet.named_parameters():
        if name.endswith("skipinit"):
            nn.init.ones_(p)
    x_seq = 3 * torch.randn(STEPS, 2, 3, 8, 8).repeat_interleave(8, 3).repeat_interleave(8, 4)
    assert "fc" not in record_synapses(resnet, x_seq, torch.tensor([0, 1]), None)


def test_ndots_variant_is_the_models_own():
    x_seq, target = batch()
    rows = [
        analysis.gradient_alignment(set_rule(network(), "ndot", variant), x_seq, target, ("ndot",))
        for variant in ("paper", "code")
    ]
    assert rows[0] != rows[1]


def test_pictures_take_what_the_instruments_return():
    x_seq, target = batch()
    pictures = (
        plots.rates(analysis.firing_rates(network(), x_seq)),
        plots.energy({row.layer: row.joules for row in analysis.energy(network(), x_seq)}),
        plots.synops(analysis.synaptic_operations(network(), x_seq)),
        plots.latency(analysis.latency_curve(network(), x_seq, target)),
        plots.alignment(analysis.gradient_alignment(network(), x_seq, target)),
    )
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)


def test_the_picture_of_alignment_has_room_for_more_rules_than_there_are():
    row = {"against": "bptt", "parameter": "all", "cosine": 0.5}
    picture = plots.alignment([{**row, "rule": f"rule {i}"} for i in range(20)])
    assert picture.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda net, x, y: analysis.firing_rates(nn.Linear(2, 2), x), "Linear has no neuron"),
        (lambda net, x, y: analysis.synaptic_operations(net[:2], x), "no layer that sees spikes"),
        (lambda net, x, y: analysis.theorem1(net[:2], x, y, lambda a, b: a.sum()), "no layer that"),
        (lambda net, x, y: analysis.gradient_alignment(net, 0 * x, y), "0|1|3|6.*never fire"),
        (lambda net, x, y: analysis.gradient_alignment(net, x, y, ("otttt",)), "did you mean ottt"),
        (lambda net, x, y: analysis.theorem1(network(v_reset=0.0), x, y), "a soft reset"),
        (lambda net, x, y: analysis.theorem1(network(v_threshold=0.9), x, y), "v_threshold=1"),
        (lambda net, x, y: analysis.theorem1(net, x[:1], y), "1 time step"),
        (lambda net, x, y: analysis.three_factor(net, "0", x, y), 'layer="0" sees no spikes'),
        (
            lambda net, x, y: analysis.three_factor(net, "7", x, y),
            "does not feed a neuron directly",
        ),
        (lambda net, x, y: analysis.three_factor(net, "5", x, y, 6), "delay=6: x_seq has 6"),
    ],
)
def test_refusals(call, words):
    net = network()
    for bias in (net[0].bias, net[5].bias):
        nn.init.zeros_(bias)
    with pytest.raises(InputError, match=words):
        call(net, *batch())


def test_a_hard_reset_has_no_spike_representation():
    with pytest.raises(InputError, match="soft reset"):
        analysis.gradient_alignment(set_rule(network(v_reset=0.0), "sltt"), *batch())


def test_instruments_see_ltc_neurons_or_say_so():
    model, x_seq = nn.Sequential(LTCNode(3, start="zero"), LeakyReadout(3)), torch.randn(4, 2, 3)
    spikes = torch.stack([model[0](x) for x in x_seq])
    rates = analysis.firing_rates(model, x_seq)
    assert 0 < rates["mean"] == rates["0"] == pytest.approx(spikes.mean().item())
    with pytest.raises(InputError, match="no layer that sees spikes of a neuron"):
        analysis.synaptic_operations(model, x_seq)
