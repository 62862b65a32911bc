"""The fast path gives the numbers of the plain one: fast steps, stored traces, one weight."""

import copy
import pickle
from functools import partial

import pytest
import timm
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import surrogate
from torch import nn

from benchmarks.measure import peak_bytes, slope
from sj_ottt import InputError, functional, layer, learning
from sj_ottt._ops import trace
from sj_ottt._ops.lif import LIF, has_closed_gradient, lif_step, reference_lif_step
from sj_ottt.layer import step_weights, synapse
from sj_ottt.neuron import OTTTLIFNode
from tests.networks import relative_error

SURROGATES = [
    surrogate.Sigmoid(),
    surrogate.Sigmoid(alpha=2.0),
    surrogate.ATan(),
    surrogate.PiecewiseQuadratic(),
    surrogate.Rect(),
]


def network(trace_dtype: str = "float32", dropout: float = 0.0) -> layer.OTTTSequential:
    """Every kind of layer between two neurons, in float64; input [N, 2, 13, 13], 4 outputs."""
    torch.manual_seed(0)
    node = partial(OTTTLIFNode, trace_dtype=trace_dtype)
    net = layer.OTTTSequential(
        layer.WSConv2d(2, 6, 3, padding=1),
        node(),
        layer.Scale(2.74),
        layer.AvgPool2d(2),
        layer.Conv2d(6, 8, 3, padding="same", padding_mode="circular"),
        node(),
        layer.Dropout(dropout),
        layer.MaxPool2d(2),
        layer.WSConv2d(8, 8, 3, padding=1, groups=2),
        node(),
        layer.AdaptiveAvgPool2d(2),
        layer.Flatten(),
        layer.WSLinear(32, 12),
        node(),
        layer.Linear(12, 4),
    ).double()
    for module in net:
        if getattr(module, "gain", None) is not None:
            nn.init.uniform_(module.gain, 3.0, 4.0)
        elif isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.3)
    return net


def train(net: nn.Module, steps: int = 6, **kwargs) -> dict[str, torch.Tensor]:
    """Gradients of one batch; refuses a silent network."""
    torch.manual_seed(1)
    x_seq = 2 * torch.randn(steps, 3, 2, 13, 13).double()
    net.zero_grad()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    torch.manual_seed(2)  # dropout
    learning.train_step(net, optimizer, x_seq, torch.tensor([0, 1, 3]), **kwargs)
    grads = {k: p.grad.clone() for k, p in net.named_parameters()}
    assert all(g.norm() > 0 for g in grads.values())
    return grads


def largest_error(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max(relative_error(a[k], b[k]) for k in b)


def step_by_step(net: nn.Module, steps: int = 6) -> dict[str, torch.Tensor]:
    """The same batch as a user's own loop: plain autograd at every step, no weight shared."""
    torch.manual_seed(1)
    x_seq = 2 * torch.randn(steps, 3, 2, 13, 13).double()
    net.zero_grad()
    torch.manual_seed(2)
    for x in x_seq:
        loss = learning.CrossEntropyMSE()(net(x), torch.tensor([0, 1, 3])) / steps
        loss.backward()
    learning.reset_state(net)
    return {k: p.grad.clone() for k, p in net.named_parameters()}


# The neuron


@pytest.mark.parametrize("v_reset", [None, 0.0, -0.3])
@pytest.mark.parametrize("decay_input", [False, True])
@pytest.mark.parametrize("tau", [2.0, 3.0])
@pytest.mark.parametrize("function", SURROGATES, ids=str)
def test_the_fast_step_is_the_reference(function, tau, decay_input, v_reset):
    """Spikes, state and gradient, bit for bit in float32 but for the surrogate's rounding."""
    torch.manual_seed(0)
    lif = LIF(tau, decay_input, 0.8, v_reset, function)
    assert has_closed_gradient(function)
    v = torch.zeros(400)
    state = {"v": v, "trace": torch.zeros(400)}
    fired = 0.0
    for _ in range(5):
        x = (3 * torch.randn(400)).requires_grad_()
        spike, v = reference_lif_step(x, v, lif)
        fast = lif_step(x, state, lif, lif.lam)
        assert torch.equal(fast, spike) and torch.equal(state["v"], v)
        g = torch.randn(400)
        ours, plain = (torch.autograd.grad(s, x, g)[0] for s in (fast, spike))
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-7)
        assert plain.abs().sum() > 0
        fired += spike.mean().item() / 5
    assert 0.1 < fired < 0.9


def test_a_surrogate_without_a_closed_gradient_still_works():
    node, plain = OTTTLIFNode(surrogate_function=surrogate.Erf()), OTTTLIFNode()
    assert not has_closed_gradient(node.surrogate_function)
    x = (2 * torch.rand(3, 7)).requires_grad_()
    spike, a = node(x)
    assert torch.equal(spike, plain(x)[0]) and torch.equal(a, plain.trace)
    assert torch.autograd.grad(spike.sum(), x)[0].norm() > 0


def test_a_step_never_writes_into_the_state_it_was_given():
    """A monitor that keeps `node.v` of every step keeps different tensors."""
    node = OTTTLIFNode(trace_dtype="packed")
    node(torch.full((4,), 0.7))
    v, stored = node.v, node.trace
    before = v.clone(), stored.clone()
    node(torch.full((4,), 0.7))
    assert torch.equal(v, before[0]) and torch.equal(stored, before[1])
    assert not torch.equal(node.v, v) and not torch.equal(node.trace, stored)


# The trace


def spikes_and_traces(trace_dtype: str, steps: int, tau: float = 2.0):
    torch.manual_seed(0)
    node, exact = OTTTLIFNode(tau, trace_dtype=trace_dtype).double(), torch.zeros(500).double()
    for _ in range(steps):
        pair = node(2 * torch.rand(500).double())
        spike, stored = pair.spike, pair.trace
        exact = exact * (1 - 1 / tau) + spike
        yield (stored.decode(torch.double) - exact).abs().max().item()


def test_packed_trace_is_exact_for_eight_steps_and_bounded_beyond():
    errors = list(spikes_and_traces("packed", 40))
    assert max(errors[:8]) == 0
    assert 0 < max(errors[8:]) < 2**-7


@pytest.mark.parametrize("tau", [1.5, 2.0, 5.0])
@pytest.mark.parametrize(("trace_dtype", "bits"), [("float16", 11), ("bfloat16", 8)])
def test_half_precision_traces_keep_their_bound(trace_dtype, bits, tau):
    errors = list(spikes_and_traces(trace_dtype, 40, tau))
    lam = 1 - 1 / tau
    assert max(errors) <= 2**-bits / (1 - lam) ** 2
    assert max(errors) > 0 or tau == 2.0


@pytest.mark.parametrize("update", ["accumulate", "online"])
def test_gradients_with_a_packed_trace_are_exact(update):
    expected, packed = (
        train(network(trace_dtype, dropout=0.2), steps=8, update=update)
        for trace_dtype in ("float32", "packed")
    )
    assert largest_error(packed, expected) < 1e-12


def test_gradients_with_a_packed_trace_beyond_eight_steps_are_close_and_not_equal():
    error = largest_error(train(network("packed"), steps=20), train(network(), steps=20))
    assert 1e-9 < error < 2**-7


@pytest.mark.parametrize(("trace_dtype", "bound"), [("float16", 2**-9), ("bfloat16", 2**-6)])
def test_gradients_with_a_half_precision_trace(trace_dtype, bound):
    assert largest_error(train(network(trace_dtype)), train(network())) < bound


def test_packed_trace_takes_a_quarter_of_the_room():
    node = OTTTLIFNode(trace_dtype="packed")
    pair = node(torch.rand(3, 5))
    spike, packed = pair.spike, pair.trace
    assert packed.stored.nbytes == 15 and spike.nbytes == 60
    assert packed.decode(torch.float32).shape == spike.shape


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"trace_dtype": "packed", "tau": 3.0}, "needs tau=2"),
        ({"trace_dtype": "paked"}, "did you mean packed"),
    ],
)
def test_bad_trace_dtype(kwargs, words):
    with pytest.raises(InputError, match=words):
        OTTTLIFNode(**kwargs)


# The weights made once


@pytest.mark.parametrize("trace_dtype", ["float32", "packed"])
def test_added_up_gradients_are_those_of_a_plain_loop(trace_dtype):
    net = network(trace_dtype)
    assert largest_error(train(net), step_by_step(net)) < 1e-12


def test_standardization_runs_once_per_update(monkeypatch):
    calls = []
    real = synapse.scaled_weight_standardization
    monkeypatch.setattr(
        synapse, "scaled_weight_standardization", lambda *a: calls.append(1) or real(*a)
    )
    train(network(), steps=5)
    assert len(calls) == 3  # three standardized layers
    calls.clear()
    train(network(), steps=5, update="online")
    assert len(calls) == 15
    calls.clear()
    learning.predict(network(), torch.rand(5, 2, 2, 13, 13).double())
    assert len(calls) == 3


@pytest.mark.parametrize("how", ["no_grad", "load_state_dict", "new_parameter", "gain"])
def test_a_weight_changed_between_steps_counts_from_then_on(how):
    """The gradient is that of the plain loop with the same change."""

    def change(net: nn.Module) -> None:
        if how == "no_grad":
            with torch.no_grad():
                net[0].weight.mul_(-1.5)
                net[4].weight.add_(0.1)
        elif how == "load_state_dict":
            net.load_state_dict({k: v * 0.9 for k, v in net.state_dict().items()})
        elif how == "gain":
            with torch.no_grad():
                net[8].gain.mul_(0)
                net[12].gain.mul_(1.3)
        else:
            net[0].weight = nn.Parameter(net[0].weight.detach() * -1.5)

    def run(shared: bool, changing: bool = True) -> dict[str, torch.Tensor]:
        torch.manual_seed(3)
        net, x_seq = network("packed"), 2 * torch.randn(6, 3, 2, 13, 13).double()
        first = net[0].weight
        with step_weights.online_weights(net) if shared else torch.enable_grad():
            for t, x in enumerate(x_seq):
                if t == 3 and changing:
                    change(net)
                F.cross_entropy(net(x), torch.tensor([0, 1, 3])).backward()
        return {"first": first.grad, **{k: p.grad for k, p in net.named_parameters()}}

    assert largest_error(run(True), run(False)) < 1e-12
    assert relative_error(run(True)["first"], run(True, changing=False)["first"]) > 1e-3


def test_frozen_and_shared_parameters():
    net = network("packed")
    net[0].weight.requires_grad_(False)
    net[4].bias.requires_grad_(False)
    net[14].requires_grad_(False)
    x, target = 2 * torch.randn(3, 2, 13, 13).double(), torch.tensor([0, 1, 3])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    learning.train_step(net, optimizer, x, target, steps=3)
    without = {k for k, p in net.named_parameters() if p.grad is None}
    assert without == {"0.weight", "4.bias", "14.weight", "14.bias"}

    shared = layer.Linear(5, 5).double()
    chain = layer.OTTTSequential(shared, OTTTLIFNode(), shared, OTTTLIFNode(), layer.Linear(5, 4))
    nn.init.normal_(shared.weight)
    x_seq = 2 * torch.randn(4, 3, 5).double()
    grads = []
    for shared in (True, False):
        chain.double().zero_grad()
        with step_weights.online_weights(chain) if shared else torch.enable_grad():
            for x in x_seq:
                F.cross_entropy(chain(x), target).backward()
        learning.reset_state(chain)
        grads.append({k: p.grad.clone() for k, p in chain.named_parameters()})
    assert largest_error(*grads) < 1e-12 and grads[0]["0.weight"].norm() > 0


def test_an_error_in_a_step_leaves_no_step_weight_behind():
    net = network()
    with pytest.raises(RuntimeError):
        train_badly = torch.optim.SGD(net.parameters(), lr=0.0)
        x_seq = torch.randn(3, 2, 5, 13, 13).double()
        learning.train_step(net, train_badly, x_seq, torch.tensor([0, 1]))
    assert all(m.step_weight is None for m in net.modules() if isinstance(m, synapse.Synapse))
    assert all(g.norm() > 0 for g in train(net).values())


def test_standardized_weight_is_kept_in_evaluation_until_it_changes():
    conv = layer.WSConv2d(3, 4, 3).eval()
    with torch.no_grad():
        first = conv.get_weight()
        assert conv.get_weight() is first
        conv.weight.mul_(-2)
        second = conv.get_weight()
        assert second is not first and (second + first).abs().max() < 1e-3
        conv.load_state_dict({k: v + 0.5 for k, v in conv.state_dict().items()})
        assert conv.get_weight() is not second
        conv.weight.data.neg_()  # invisible to PyTorch's count of changes
        stale = conv.get_weight()
        assert (conv.train().get_weight() + stale).abs().max() < 1e-5
        assert conv.double().get_weight().dtype == torch.double
    assert conv.get_weight().requires_grad
    with torch.no_grad():
        conv.get_weight()
    assert copy.deepcopy(conv)._kept is None and pickle.loads(pickle.dumps(conv))._kept is None


def test_evaluation_under_inference_mode_does_not_spoil_training():
    net = network("packed")
    x_seq = torch.randn(2, 3, 2, 13, 13).double()
    learning.predict(net, x_seq)
    expected = train(network("packed"))
    assert largest_error(train(net), expected) < 1e-12


# Backward on K of T steps


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
    real = step_weights.OnlineWeight.add
    monkeypatch.setattr(
        step_weights.OnlineWeight, "add", lambda *args: backwards.append(args[0]) or real(*args)
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


# Pooling, layout and memory


@pytest.mark.parametrize(("size", "kernel"), [((8, 6), 2), ((9, 7), 2), ((9, 9), 3)])
def test_average_pooling_without_its_input(size, kernel):
    x = torch.randn(2, 3, *size, dtype=torch.double, requires_grad=True)
    y, expected = functional.avg_pool2d(x, kernel), F.avg_pool2d(x, kernel)
    assert torch.equal(y, expected)
    g = torch.randn_like(y)
    torch.testing.assert_close(
        torch.autograd.grad(y, x, g)[0], torch.autograd.grad(expected, x, g)[0]
    )
    assert peak_bytes(lambda: functional.avg_pool2d(x, kernel)) == y.nbytes


def small_vgg(**kwargs) -> layer.OTTTSequential:
    node = partial(OTTTLIFNode, **kwargs)
    modules, channels = [], 3
    for i, width in enumerate((16, 24, 24)):
        modules += [layer.AvgPool2d(2)] if i == 2 else []
        modules += [layer.WSConv2d(channels, width, 3, padding=1), node(), layer.Scale(2.74)]
        channels = width
    return layer.OTTTSequential(
        *modules, layer.AdaptiveAvgPool2d(1), layer.Flatten(), layer.Linear(channels, 4)
    )


def test_activations_stay_channels_last_from_input_to_head():
    net, formats = small_vgg(trace_dtype="packed"), []
    for module in net:
        module.register_forward_hook(
            lambda m, _, out: (
                formats.append(
                    (out[0] if isinstance(out, list) else out).is_contiguous(
                        memory_format=torch.channels_last
                    )
                )
                if not isinstance(m, (layer.Flatten, layer.Linear))
                else None
            )
        )
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    learning.train_step(net, optimizer, torch.randn(4, 3, 16, 16), torch.arange(4), steps=2)
    assert len(formats) == 2 * 11 and all(formats)


def training(n: int, steps: int, **kwargs):
    torch.manual_seed(0)
    net = small_vgg(**kwargs)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    x_seq = torch.randn(steps, n, 3, 32, 32)
    return lambda: learning.train_step(net, optimizer, x_seq, torch.zeros(n).long())


def test_memory_does_not_grow_with_the_number_of_steps():
    peaks = [peak_bytes(training(4, steps, trace_dtype="packed")) for steps in (2, 64)]
    assert abs(peaks[1] / peaks[0] - 1) < 0.01


def test_memory_is_that_of_the_state():
    neurons = 32 * 32 * (16 + 24) + 16 * 16 * 24
    sizes = [4, 8, 16]

    def per_neuron(**kwargs) -> float:
        return slope(sizes, [peak_bytes(training(n, 6, **kwargs)) for n in sizes]) / neurons

    assert trace.TRACE_DTYPES["packed"].itemsize == 1
    packed, full = per_neuron(trace_dtype="packed"), per_neuron(trace_dtype="float32")
    # The state is 5 bytes; beside it live two numbers and two bytes a neuron of the largest layer.
    assert packed < 5 + 10 * 24 / 46
    assert full > packed + 2.5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["test_ottt_vgg", "test_ottt_nf_resnet"])
def test_a_time_step_compiles_without_a_graph_break(name):
    """`fullgraph=True` refuses breaks; the gradients of a sequence are those of the plain step."""
    torch._dynamo.reset()
    grads = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=4).double()
        for parameter in model.parameters():
            if parameter.dim() == 0:
                nn.init.ones_(parameter)  # an NF-ResNet's branches start at zero
        nn.init.normal_(model.fc.weight)
        step = torch.compile(model, fullgraph=True, backend="aot_eager") if compiled else model
        torch.manual_seed(1)
        for x in 3 * torch.randn(3, 4, 3, 32, 32).double():
            F.cross_entropy(step(x), torch.arange(4)).backward()
        grads.append({k: p.grad for k, p in model.named_parameters()})
    assert all(g.norm() > 0 for g in grads[0].values())
    assert largest_error(grads[1], grads[0]) < 1e-12
