"""NIR graphs: a reader that is written from NIR's equations computes the same spikes."""

import io
from functools import partial

import pytest
import timm
import torch
from spikingjelly.activation_based import layer as sj_layer
from torch import nn
from torch.nn import functional as F

from sj_ottt import InputError, convert, layer
from sj_ottt.learning import predict, reset_state
from sj_ottt.learning.predict import predicts_last
from sj_ottt.neuron import LTCRecurrent, MembraneReadout, OTTTLIFNode, OTTTParametricLIFNode
from sj_ottt.neuron.readout import LeakyIntegrator

nir = pytest.importorskip("nir")

from sj_ottt.export import READERS, to_nir  # noqa: E402
from tests.export.networks import NEURONS, Residual, randomised, run_nir  # noqa: E402


def read_back(export):
    return nir.read(io.BytesIO(export.to_bytes()))


def ours(model, x_seq):
    """The outputs [T, N, ...], and the spikes by the neurons' names."""
    spikes = {}
    hooks = [
        m.register_forward_hook(
            lambda _m, _a, out, name=name: spikes.setdefault(name, []).append(out)
        )
        for name, m in model.named_modules()
        if isinstance(m, OTTTLIFNode)
    ]
    reset_state(model)
    with torch.no_grad():
        outputs = torch.stack([model(x) for x in x_seq])
    reset_state(model)
    for hook in hooks:
        hook.remove()
    return outputs, {name: torch.stack(s) for name, s in spikes.items()}


def check(model, x_seq, reader="snntorch"):
    """The graph, read from its file, gives the network's outputs and spikes; return the graph."""
    expected, expected_spikes = ours(model, x_seq)
    graph = read_back(to_nir(model, x_seq[0, :1], reader))
    with torch.no_grad():
        out, spikes = run_nir(graph, x_seq, READERS[reader].dt, READERS[reader].exact)
    assert spikes.keys() == expected_spikes.keys()
    for name, spike in spikes.items():
        assert 0.02 < spike.mean() < 0.98, name
        assert torch.equal(spike, expected_spikes[name]), name
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    return graph


@pytest.fixture
def x_seq():
    torch.manual_seed(0)
    return 6 * torch.randn(5, 3, 2, 8, 8)


@pytest.mark.parametrize("reader", ["snntorch", "sinabs"])
@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("kind", NEURONS)
def test_a_residual_network_of_every_neuron_becomes_the_same_graph(kind, twice, reader, x_seq):
    torch.manual_seed(1)
    model = randomised(Residual(partial(OTTTLIFNode, **NEURONS[kind]), twice))
    # What takes 1 for r / tau can take it as r says as well.
    graph = check(model, x_seq, reader)
    kinds = {type(node).__name__ for node in graph.nodes.values()}
    assert kinds <= {
        "Input", "Conv2d", "SumPool2d", "LIF", "IF", "Flatten", "Affine", "Linear", "Output"
    }  # fmt: skip


def test_a_parametric_neuron_keeps_its_time_constant(x_seq):
    torch.manual_seed(1)
    graph = check(randomised(Residual(partial(OTTTParametricLIFNode, init_tau=1.7))), x_seq)
    assert graph.nodes["late"].tau.flat[0] == pytest.approx(1.7e-4)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("readout", ["traced", "membrane"])
@pytest.mark.parametrize("name", ["test_ottt_vgg", "test_ottt_nf_resnet"])
def test_our_models_become_graphs_that_predict_the_same(name, readout, reader, x_seq):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3, in_chans=2, readout=readout).eval()
    nn.init.normal_(model.fc.weight)
    for block in (m for m in model.modules() if hasattr(m, "skipinit")):
        nn.init.constant_(block.skipinit, 0.7)
    x_seq = torch.nn.functional.interpolate(x_seq.flatten(0, 1), 32).unflatten(0, (5, 3))
    graph = read_back(to_nir(model, x_seq[0], reader, {"classes": '["a", "b", "c"]'}))
    assert graph.metadata["classes"] == '["a", "b", "c"]' and graph.metadata["reader"] == reader
    if readout == "membrane" and reader == "sinabs":
        assert (graph.nodes["integrator"].r == 1).all()  # as it demands
        return
    out, _ = run_nir(graph, x_seq, READERS[reader].dt, READERS[reader].exact)
    last = predicts_last(model)
    assert last == (readout == "membrane")
    expected = predict(model, x_seq)
    torch.testing.assert_close(out[-1] if last else out.sum(0), expected, rtol=1e-3, atol=1e-4)
    assert expected.std() > 1e-3


def test_the_reset_is_what_the_metadata_say(x_seq):
    """The control: a reader that knows NIR's hard reset alone computes other spikes."""
    torch.manual_seed(1)
    model = randomised(Residual())
    graph = read_back(to_nir(model, x_seq[0]))
    for node in graph.nodes.values():
        if isinstance(node, nir.LIF):
            assert node.metadata == {"reset": "subtract", "fires": "v >= v_threshold"}
            node.metadata = {"reset": "value"}
    _, spikes = run_nir(graph, x_seq, 1e-4, False)
    _, expected = ours(model, x_seq)
    assert any(not torch.equal(spikes[name], expected[name]) for name in expected)


def test_a_network_of_spikingjelly_becomes_a_graph(x_seq):
    from spikingjelly.activation_based import neuron

    torch.manual_seed(0)
    theirs = nn.Sequential(
        sj_layer.Conv2d(2, 8, 3, padding=1, bias=False), sj_layer.BatchNorm2d(8), neuron.IFNode(),
        sj_layer.AvgPool2d(2), sj_layer.Flatten(), sj_layer.Linear(8 * 16, 3), neuron.LIFNode(),
    )  # fmt: skip
    check(convert(randomised(theirs)).eval(), x_seq)
    with pytest.raises(InputError, match=r"2 is a IFNode.*sj_ottt.convert"):
        to_nir(theirs, x_seq[0])


def test_readers_are_told_what_they_can_and_must_do(x_seq):
    def of(neuron=OTTTLIFNode, reader="snntorch", head=None):
        chain = [layer.Conv2d(2, 4, 3), neuron(), layer.Flatten(), head or layer.Linear(4 * 36, 3)]
        return to_nir(layer.OTTTSequential(*chain), x_seq[0], reader).readers

    soft = of()
    assert "reset_mechanism='subtract'" in soft["snntorch"] and soft["snntorch"].startswith("same")
    assert soft["norse"] == 'another time step: write the graph with reader="norse"'
    assert "reset_subtract" in of(reader="norse")["norse"]
    assert "SingleSpike" in of(reader="sinabs")["sinabs"]
    assert "nothing to be done" in of(partial(OTTTLIFNode, v_reset=0.0))["snntorch"]
    assert "resets to 0 only" in of(partial(OTTTLIFNode, v_reset=0.1))["snntorch"]
    no_leak = partial(OTTTLIFNode, tau=float("inf"))
    assert "do not subtract" in of(no_leak, "norse")["norse"] and "beta" in of(no_leak)["snntorch"]
    membrane = of(head=MembraneReadout(layer.Linear(4 * 36, 3)))
    assert "(LI)" in membrane["snntorch"] and "(LI)" in membrane["norse"]
    branches = to_nir(randomised(Residual()), x_seq[0]).readers
    assert "wrong order" in branches["norse"] and "wrong order" in branches["sinabs"]


def first_part(net, s):
    return net.parts[0](s)


class Does(nn.Module):
    """A network that does one more thing."""

    def __init__(self, what, *parts):
        super().__init__()
        self.conv, self.node, self.what = layer.Conv2d(2, 4, 3, padding=1), OTTTLIFNode(), what
        self.parts = nn.ModuleList(parts)

    def forward(self, x):
        return self.what(self, self.node(self.conv(x)))


def _written(net, s):
    s[0] = 0
    return s


class Other(layer.Conv2d):
    """A convolution that does more than its class."""

    def forward(self, x):
        return super().forward(x).abs()


class OtherNorm(nn.BatchNorm2d):
    """The same of a batch norm."""

    def forward(self, x):
        return super().forward(x) + 1


class OtherNeuron(OTTTLIFNode):
    """A neuron with a step of its own."""

    def _step(self, x, state):
        return super()._step(2 * x, state)


class OtherReadout(nn.Module):
    """A membrane that integrates what is no synapse."""

    def __init__(self):
        super().__init__()
        self.first = Does(lambda net, s: s)
        self.membrane = LeakyIntegrator()

    def forward(self, x):
        return self.membrane(self.first(x), torch.sin)


REFUSED = {
    "own synapse": (Does(first_part, Other(4, 4, 3)), "than the product with its weight"),
    "own norm": (Does(first_part, OtherNorm(4)), "something else than a factor and a shift"),
    "own neuron": (Does(first_part, OtherNeuron()), "something else than a LIF neuron's step"),
    "own readout": (OtherReadout(), "something else than the integral of one linear layer"),
    "transpose": (Does(lambda net, s: net.conv(s.mT[:, :2])), "takes __getitem__ of results"),
    "mT": (Does(lambda net, s: s.mT), "takes __get__ of results"),
    "active dropout": (Does(lambda net, s: F.dropout(s, 0.5)), "takes dropout of results"),
    "rounded": (
        Does(lambda net, s: torch.div(s, 3, rounding_mode="floor")), "takes div of results"
    ),
    "number minus": (Does(lambda net, s: 1 - s), "takes r?_*r?sub_* of results"),
    "max pool": (Does(first_part, layer.MaxPool2d(2)), "max_pool2d of results"),
    "activation": (Does(lambda net, s: torch.relu(s)), "takes relu of results"),
    "constant": (Does(lambda net, s: s + torch.ones(4, 8, 8)), "takes add of results"),
    "product": (Does(lambda net, s: s * s), "takes mul of results"),
    "attention": (Does(lambda net, s: s @ s), "takes matmul of results"),
    "parts": (Does(lambda net, s: net.conv(s[:, :2])), "takes __getitem__ of results"),
    "split": (Does(lambda net, s: net.conv(s.chunk(2, 1)[0])), "not made of the network's input"),
    "written into": (Does(_written), "__setitem__ writes into results"),
    "neuron twice": (Does(lambda net, s: net.node(s)), "node runs twice in a time step"),
    "several outputs": (Does(lambda net, s: (s, s)), "gives a tuple, not one tensor"),
    "padding mode": (
        Does(first_part, layer.Conv2d(4, 4, 3, padding=1, padding_mode="circular")),
        'padding_mode="circular"',
    ),
    "transposed": (
        Does(first_part, nn.ConvTranspose2d(4, 4, 3)), "ConvTranspose2d, for which"
    ),
    "pool without pads": (
        Does(first_part, nn.AvgPool2d(3, padding=1, count_include_pad=False)),
        "count_include_pad",
    ),
    "uneven pool": (
        Does(first_part, layer.AdaptiveAvgPool2d(3)), "windows of different sizes"
    ),
    "batch statistics": (
        Does(first_part, nn.BatchNorm2d(4, track_running_stats=False)),
        "track_running_stats=True",
    ),
    "linear of maps": (Does(first_part, layer.Linear(8, 3)), r"linear layer of"),
    "half flattened": (
        Does(first_part, layer.Flatten(2)), r"flatten to \[N, F\]"
    ),
    "liquid": (
        nn.Sequential(nn.Flatten(), LTCRecurrent(128, 4)), "LTCRecurrent, whose dynamics NIR has no"
    ),
    "feedback": (timm.create_model("test_ottt_vggf", in_chans=2), "feedback is a Feedback"),
    "nothing": (nn.Identity(), "hands on its input"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_word_is_refused_by_name(name, x_seq):
    model, words = REFUSED[name]
    with pytest.raises(InputError, match=words):
        to_nir(model, x_seq[0])


def test_a_dropout_that_drops_nothing_is_seen_through(x_seq):
    quiet = Does(lambda net, s: F.dropout(net.parts[0](s), 0.5, net.training), nn.Dropout(0.5))
    graph = to_nir(quiet, x_seq[0]).graph
    assert [*graph.nodes] == ["input", "conv", "node", "output"]


def test_an_unknown_reader_and_a_missing_package_are_refused(x_seq, monkeypatch):
    model = Does(lambda net, s: s)
    with pytest.raises(InputError, match=r'reader="snntorhc" is unknown.*did you mean'):
        to_nir(model, x_seq[0], "snntorhc")
    monkeypatch.setitem(__import__("sys").modules, "nir", None)
    with pytest.raises(InputError, match=r"NIR needs the package nir"):
        to_nir(model, x_seq[0])
