"""Weights made once per update give the gradients of a plain loop."""

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import layer as sj_layer
from torch import nn
from torch.nn.utils import parametrizations, prune

from sj_ottt import InputError, layer, learning, set_rule
from sj_ottt._ops import cpp
from sj_ottt._ops.blocks import is_given_away
from sj_ottt.layer import step_weights, synapse
from sj_ottt.neuron import OTTTLIFNode
from tests.every_layer import network, step_by_step, train
from tests.networks import largest_error, relative_error


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


def test_a_frozen_parameter_gets_no_gradient():
    net = network("packed")
    net[0].weight.requires_grad_(False)
    net[4].bias.requires_grad_(False)
    net[14].requires_grad_(False)
    x, target = 2 * torch.randn(3, 2, 13, 13).double(), torch.tensor([0, 1, 3])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    learning.train_step(net, optimizer, x, target, steps=3)
    without = {k for k, p in net.named_parameters() if p.grad is None}
    assert without == {"0.weight", "4.bias", "14.weight", "14.bias"}


def test_a_synapse_in_two_places_gets_the_gradient_of_both():
    torch.manual_seed(0)
    twice = layer.Linear(5, 5)
    chain = layer.OTTTSequential(twice, OTTTLIFNode(), twice, OTTTLIFNode(), layer.Linear(5, 4))
    nn.init.normal_(twice.weight)
    chain.double()
    x_seq, target = 2 * torch.randn(4, 3, 5).double(), torch.tensor([0, 1, 3])
    grads = []
    for shared in (True, False):
        chain.zero_grad()
        with step_weights.online_weights(chain) if shared else torch.enable_grad():
            for x in x_seq:
                F.cross_entropy(chain(x), target).backward()
        learning.reset_state(chain)
        grads.append({k: p.grad.clone() for k, p in chain.named_parameters()})
    assert largest_error(*grads) < 1e-12 and grads[0]["0.weight"].norm() > 0


def test_an_error_in_a_step_leaves_no_step_weight_behind():
    net = network()
    with pytest.raises(RuntimeError):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
        x_seq = torch.randn(3, 2, 5, 13, 13).double()  # five channels instead of two
        learning.train_step(net, optimizer, x_seq, torch.tensor([0, 1]))
    assert all(m.step_weight is None for m in net.modules() if isinstance(m, synapse.Synapse))
    assert all(g.norm() > 0 for g in train(net).values())


@pytest.mark.parametrize("rule", ["ottt", "bptt"])
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_under_autocast_only_the_product_is_narrow(rule, half):
    """As with SpikingJelly's layers, whose standardization autocast does not reach either."""
    torch.manual_seed(0)
    x_seq, target = 2 * torch.randn(4, 8, 2, 8, 8), torch.randint(0, 4, (8,))

    def run(library) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        torch.manual_seed(0)
        net = layer.OTTTSequential(
            library.WSConv2d(2, 8, 3, padding=1),
            OTTTLIFNode(),
            library.WSConv2d(8, 16, 3, padding=1),
            OTTTLIFNode(),
            layer.AvgPool2d(4),
            layer.Flatten(),
            library.WSLinear(16 * 4, 4),
        )
        set_rule(net, rule)
        optimizer = torch.optim.SGD(net.parameters(), 0.0)
        scaler = torch.amp.GradScaler("cpu", enabled=half == torch.float16)
        with torch.autocast("cpu", half):
            for _ in range(4):
                learning.train_step(net, optimizer, x_seq, target, scaler=scaler)
            logits = learning.predict(net, x_seq)  # with the weight kept
            assert logits.dtype == half
        assert not scaler.is_enabled() or scaler.get_scale() == 65536
        return {k: p.grad for k, p in net.named_parameters()}, logits

    (ours, logits), (theirs, expected) = run(layer), run(sj_layer)
    assert largest_error(ours, theirs) < 2e-3 and all(g.norm() > 0 for g in ours.values())
    torch.testing.assert_close(logits, expected)


def test_half_precision_gradients_add_up_in_the_parameters_dtype():
    synapse_ = layer.Linear(3, 2)
    weight = step_weights.MadeWeight(synapse_)
    one = torch.ones(2, 3, dtype=torch.float16)
    weight.add(one, one[:, 0])
    for _ in range(100):
        weight.add(one / 4096, one[:, 0] / 4096)  # lost in float16
    weight.finish()
    assert torch.equal(synapse_.weight.grad, torch.full((2, 3), 1 + 100 / 4096))
    assert torch.equal(synapse_.bias.grad, torch.full((2,), 1 + 100 / 4096))


@pytest.mark.skipif(cpp.missing() is not None, reason="needs a C++ compiler")
def test_the_sum_of_the_steps_becomes_the_gradient_of_a_standardized_weight():
    """No second tensor is made; afterwards nobody may write into what a hook has kept."""
    synapse_, seen = layer.WSConv2d(3, 4, 3), []
    synapse_.weight.register_hook(seen.append)
    weight = step_weights.MadeWeight(synapse_)
    grads = [torch.randn_like(weight.weight) for _ in range(2)]  # laid out as a product gives them
    expected = torch.autograd.grad(synapse_.get_weight(), synapse_.weight, sum(grads))[0]
    for grad in grads:
        weight.add(grad, None)
    weight.finish()
    assert seen[-1].data_ptr() == grads[0].data_ptr() and not is_given_away(grads[0])
    torch.testing.assert_close(synapse_.weight.grad, expected)


def with_foreign_layers() -> nn.Module:
    """A standardized, a plain and a tied synapse of ours, batch norm, and PyTorch's own layer."""
    torch.manual_seed(0)
    tied = layer.Linear(64, 64)
    net = layer.OTTTSequential(
        layer.WSConv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        OTTTLIFNode(v_threshold=0.1),
        layer.Conv2d(4, 4, 3, padding=1),
        OTTTLIFNode(v_threshold=0.1),
        layer.Flatten(),
        tied,
        OTTTLIFNode(v_threshold=0.1),
        layer.Linear(64, 64),
        OTTTLIFNode(v_threshold=0.1),
        nn.Linear(64, 4),
    ).double()
    net[8].weight = tied.weight
    return net


def gradients(net: nn.Module, update: str, lr: float = 0.1) -> dict[str, torch.Tensor | None]:
    torch.manual_seed(1)
    x_seq, target = 3 * torch.randn(3, 2, 2, 4, 4).double(), torch.tensor([0, 1])
    optimizer = torch.optim.SGD(net.parameters(), lr)
    learning.train_step(net, optimizer, x_seq, target, update=update)
    return {k: p.grad for k, p in net.named_parameters()}


@pytest.mark.parametrize(
    ("rule", "update", "times"), [("ottt", "accumulate", 1), ("ottt", "online", 3), ("bptt", "", 1)]
)
def test_hooks_on_gradients_run_once_per_update(rule, update, times):
    """Each sees the gradient of the update, and may change it."""
    update = update or "accumulate"
    plain, net = (set_rule(with_foreign_layers(), rule) for _ in range(2))
    expected = gradients(plain, update)
    before, after = ({k: [] for k, _ in net.named_parameters()} for _ in range(2))
    for k, p in net.named_parameters():
        p.register_hook(lambda g, k=k: before[k].append(g.clone()))
        p.register_post_accumulate_grad_hook(lambda p, k=k: after[k].append(p.grad.clone()))
    found = gradients(net, update)
    assert largest_error(found, expected) < 1e-12 and min(g.norm() for g in found.values()) > 0
    for seen in (before, after):
        assert {k: len(v) for k, v in seen.items()} == dict.fromkeys(expected, times)
        assert largest_error({k: v[-1] for k, v in seen.items()}, expected) < 1e-12
    plain, doubled = with_foreign_layers(), with_foreign_layers()
    handles = [p.register_hook(lambda g: 2 * g) for p in set_rule(doubled, rule).parameters()]
    single = gradients(set_rule(plain, rule), update, lr=0.0)
    twice = gradients(doubled, update, lr=0.0)
    assert largest_error(twice, {k: 2 * g for k, g in single.items()}) < 1e-12
    for handle in handles:
        handle.remove()
    assert largest_error(gradients(doubled, update, lr=0.0), single) < 1e-12


@pytest.mark.parametrize("update", ["accumulate", "online"])
def test_an_optimizer_inside_the_backward_pass_steps_once_per_update(update):
    plain, net = with_foreign_layers(), with_foreign_layers()
    gradients(plain, update)
    for p in net.parameters():
        own = torch.optim.SGD([p], 0.1)

        def step(p: torch.Tensor, own: torch.optim.Optimizer = own) -> None:
            own.step()
            own.zero_grad()

        p.register_post_accumulate_grad_hook(step)
    grads = gradients(net, update)
    assert all(g is None for g in grads.values())
    assert largest_error(dict(net.named_parameters()), dict(plain.named_parameters())) < 1e-12


def test_no_hook_runs_where_a_loss_is_not_finite():
    net, seen = with_foreign_layers(), []
    for p in net.parameters():
        p.register_hook(seen.append)
        p.register_post_accumulate_grad_hook(seen.append)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    x_seq, target = 3 * torch.randn(3, 2, 2, 4, 4).double(), torch.tensor([0, 1])
    with pytest.raises(InputError, match="the loss of time step 0 is nan"):
        learning.train_step(
            net, optimizer, x_seq, target, loss_fn=lambda y, target: y.sum() * float("nan")
        )
    assert not seen
    learning.train_step(net, optimizer, x_seq, target)
    assert len(seen) == 2 * len([*net.parameters()])


def test_a_hook_leaves_what_was_in_grad_before():
    net, x = with_foreign_layers(), 3 * torch.randn(2, 2, 4, 4).double()
    seen = []
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    net[10].weight.register_hook(seen.append)
    with step_weights.online_weights(net):
        for _ in range(3):
            net(x).sum().backward()
    assert len(seen) == 1 and seen[0].norm() > 0
    assert torch.equal(net[10].weight.grad, 1 + seen[0])


MADE_ANEW = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": lambda m: parametrizations.orthogonal(m) if m.weight.dim() == 2 else m,
    "pruned weight": lambda m: prune.random_unstructured(m, "weight", 0.3),
    "pruned bias": lambda m: prune.random_unstructured(m, "bias", 0.3),
    "old weight_norm": nn.utils.weight_norm,
    "old spectral_norm": nn.utils.spectral_norm,
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", MADE_ANEW)
@pytest.mark.parametrize(
    ("rule", "update"), [("ottt", "accumulate"), ("ottt", "online"), ("bptt", "accumulate")]
)
def test_weights_that_are_made_at_every_call_learn_as_in_a_plain_loop(kind, rule, update):
    def make() -> nn.Module:
        torch.manual_seed(0)
        net = layer.OTTTSequential(
            layer.WSConv2d(2, 4, 3, padding=1),
            OTTTLIFNode(v_threshold=0.1),
            layer.Conv2d(4, 4, 3, padding=1),
            OTTTLIFNode(v_threshold=0.1),
            layer.Flatten(),
            layer.Linear(64, 16),
            OTTTLIFNode(v_threshold=0.1),
            layer.Linear(16, 16),
            OTTTLIFNode(v_threshold=0.1),
            layer.Linear(16, 4),
        ).double()
        for i in (0, 2, 5, 7, 9):
            MADE_ANEW[kind](net[i])
        return set_rule(net, rule)

    ours, plain = make(), make()
    x_seq, target = 3 * torch.randn(4, 3, 2, 4, 4).double(), torch.tensor([0, 1, 3])
    for net in (ours, plain):
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        for _ in range(2):
            if net is ours:
                learning.train_step(
                    net, optimizer, x_seq, target, update=update, loss_fn=F.cross_entropy
                )
                continue
            optimizer.zero_grad()
            total = torch.zeros(())
            for x in x_seq:
                loss = F.cross_entropy(net(x), target) / len(x_seq)
                if rule == "bptt":
                    total = total + loss
                    continue
                loss.backward()
                if update == "online":
                    optimizer.step()
                    optimizer.zero_grad()
            if rule == "bptt":
                total.backward()
            if update != "online":
                optimizer.step()
            learning.reset_state(net)
    before = make().state_dict()
    found, expected = ours.state_dict(), plain.state_dict()
    assert largest_error(found, expected) < 1e-12
    moved = [k for k in expected if not torch.equal(before[k], expected[k])]
    assert len(moved) >= 10


@pytest.mark.parametrize("kind", ["weight_norm", "pruned weight"])
def test_evaluation_keeps_no_weight_that_is_made_at_every_call(kind):
    torch.manual_seed(0)
    synapse_, x = layer.WSLinear(20, 10), torch.randn(3, 20)
    with torch.no_grad():
        synapse_.eval()(x)
        assert synapse_._kept is not None
        MADE_ANEW[kind](synapse_)
        for _ in range(3):
            made = synapse_(x)
            assert synapse_._kept is None
            for parameter in synapse_.parameters():
                parameter.copy_(torch.rand_like(parameter))
            assert (synapse_(x) - made).norm() > 0.1
