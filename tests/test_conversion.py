"""SpikingJelly networks, converted: the same function, and the gradient of the rule."""

import copy

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional as sj_functional
from spikingjelly.activation_based import layer as sj_layer
from spikingjelly.activation_based import neuron as sj_neuron
from spikingjelly.activation_based import surrogate
from spikingjelly.activation_based.model import (
    ms_resnet,
    sew_resnet,
    spike_driven_transformer,
    spiking_resnet,
    spiking_vgg,
)
from torch import nn

from sj_ottt import InputError, convert, layer, learning
from sj_ottt.layer import Pair
from sj_ottt.learning.rules import rule_of
from sj_ottt.neuron import OTTTLIFNode
from tests.networks import relative_error

STEPS = 5


def lif(**kwargs) -> sj_neuron.LIFNode:
    return sj_neuron.LIFNode(2.0, False, 1.0, None, surrogate.Sigmoid(), True, **kwargs)


class Block(nn.Module):
    """Conv, neuron, conv, neuron; the input's spikes are added, to a current or to spikes."""

    def __init__(self, channels: int, spikes: bool):
        super().__init__()
        self.conv1, self.sn1 = sj_layer.Conv2d(channels, channels, 3, padding=1), lif()
        self.conv2, self.sn2 = nn.Conv2d(channels, channels, 3, padding=1), lif()
        self.spikes = spikes

    def forward(self, x):
        out = self.conv2(self.sn1(self.conv1(x)))
        if self.spikes:
            return self.sn2(out) + x
        out += x
        return self.sn2(out)


def theirs(spikes: bool = False, std: float = 0.3) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1, bias=False),
        sj_layer.BatchNorm2d(6),
        lif(),
        Block(6, spikes),
        sj_layer.AvgPool2d(2),
        sj_layer.WSConv2d(6, 8, 3),
        lif(),
        nn.Flatten(),
        nn.Linear(8 * 2 * 2, 4),
    ).double()
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.normal_(module.weight, std=std)
    nn.init.constant_(net[5].gain, 3.0)
    return net


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return 3 * torch.randn(STEPS, 6, 2, 8, 8).double(), torch.tensor([0, 1, 2, 3, 0, 1])


def gradients(net: nn.Module) -> dict[str, torch.Tensor]:
    net.zero_grad()
    learning.train_step(net, torch.optim.SGD(net.parameters(), 0.0), *batch())
    grads = {k: p.grad.clone() for k, p in net.named_parameters()}
    assert all(g.norm() > 0 for g in grads.values())
    return grads


def through_time(net: nn.Module) -> dict[str, torch.Tensor]:
    """Their model's own gradient: BPTT, written as a user of SpikingJelly does."""
    x_seq, target = batch()
    sum(learning.CrossEntropyMSE()(net(x), target) / STEPS for x in x_seq).backward()
    return {k: p.grad.clone() for k, p in net.named_parameters()}


@pytest.mark.parametrize("spikes", [False, True])
def test_the_same_network(spikes):
    """Same outputs, same BPTT gradient, and OTTT's where BPTT's is exact."""
    model = theirs(spikes)
    net = convert(model, "bptt", share=False)
    assert list(net.state_dict()) == list(model.state_dict())
    exact = through_time(copy.deepcopy(model))
    found = gradients(net)
    assert max(relative_error(found[k], exact[k]) for k in exact) < 1e-12
    x_seq, _ = batch()
    net = convert(model.eval())
    with torch.no_grad():
        assert relative_error(learning.predict(net, x_seq), sum(model(x) for x in x_seq)) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["ottt", "sltt", "ndot"])
@pytest.mark.parametrize("spikes", [False, True])
def test_rules_through_residual_blocks(spikes, rule):
    """One backward pass a step gives what the same steps written out by hand give."""
    net = convert(theirs(spikes), rule, share=False)
    assert rule_of(net).name == rule and isinstance(net[3], Block)
    found = gradients(net)
    exact = through_time(theirs(spikes))
    a, b = (torch.cat([g[k].flatten() for k in exact]) for g in (found, exact))
    assert F.cosine_similarity(a, b, dim=0) > 0.5
    # The trace of a sum of spikes is the sum of their traces.
    records = []
    hook = net[3].register_forward_hook(lambda module, args, out: records.append((args[0], out)))
    x_seq, _ = batch()
    for x in x_seq:
        net(x)
    hook.remove()
    assert len(records) == STEPS and all(isinstance(out, Pair) for _, out in records)
    if rule == "ottt":
        ends = [
            torch.stack([pair.values for pair in pairs]) for pairs in zip(*records, strict=True)
        ]
        spikes_out = torch.stack([out[0] for _, out in records]).detach()
        weights = [0.5 ** (STEPS - 1 - t) for t in range(STEPS)]
        expected = sum(w * s for w, s in zip(weights, spikes_out, strict=True))
        assert relative_error(ends[1][-1], expected) < 1e-12


def test_an_ottt_chain_of_theirs():
    """Their OTTTSequential with their nodes gives the same gradient after conversion."""
    torch.manual_seed(2)
    chain = sj_layer.OTTTSequential(
        sj_layer.WSConv2d(2, 6, 3),
        sj_neuron.OTTTLIFNode(),
        sj_layer.AvgPool2d(2),
        sj_layer.Flatten(),
        sj_layer.Linear(6 * 3 * 3, 4),
    ).double()
    nn.init.constant_(chain[0].gain, 3.0)
    grads = []
    for net in (chain, convert(chain, share=False)):
        net.zero_grad()
        x_seq, target = batch()
        for x in x_seq:
            F.cross_entropy(net(x), target).backward()
        grads.append({k: p.grad for k, p in net.named_parameters()})
    assert all(relative_error(grads[1][k], g) < 1e-12 for k, g in grads[0].items())
    assert type(convert(chain)) is layer.OTTTSequential


def test_shared_or_copied():
    model = theirs()
    before, kinds = copy.deepcopy(model.state_dict()), [type(m) for m in model.modules()]
    shared, copied = convert(model), convert(model, share=False)
    for k, p in model.named_parameters():
        assert shared.get_parameter(k) is p and copied.get_parameter(k) is not p
    learning.train_step(copied, torch.optim.SGD(copied.parameters(), 0.5), *batch())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    learning.train_step(shared, torch.optim.SGD(shared.parameters(), 0.5), *batch())
    assert not torch.equal(model[8].weight, before["8.weight"])
    assert [type(m) for m in model.modules()] == kinds
    assert isinstance(shared[2], OTTTLIFNode) and shared[2].trace_dtype == "packed"


def test_a_model_in_step_mode_m_comes_out_in_s():
    model = nn.Sequential(sj_layer.Linear(4, 6), lif(), nn.Dropout(0.5), sj_layer.Linear(6, 3))
    sj_functional.set_step_mode(model, "m")
    net = convert(model, "sltt")
    assert all(m.step_mode == "s" for m in net.modules() if hasattr(m, "step_mode"))
    assert type(net[2]) is layer.Dropout and net[2].p == 0.5
    assert model[0].step_mode == "m"
    assert net(torch.rand(2, 4)).shape == (2, 3)


def test_a_model_of_all_steps_at_once_becomes_one_of_single_steps():
    """The same function in evaluation, and the same gradient where nothing is normalised."""
    torch.manual_seed(0)
    model = nn.Sequential(
        sj_layer.SeqToANNContainer(nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)),
        lif(step_mode="m"),
        sj_layer.StepModeContainer(False, "m", nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6)),
        sj_layer.MultiStepContainer(lif(), nn.AvgPool2d(2)),
        sj_layer.Conv2d(6, 4, 1, step_mode="m"),
        sj_layer.BatchNorm2d(4, step_mode="m"),
        lif(step_mode="m"),
        sj_layer.SeqToANNContainer(nn.Flatten(), nn.Linear(36, 4)),
    ).double()
    x_seq, _ = batch()
    with torch.no_grad():  # running statistics that are not those of the start
        model(x_seq)
        sj_functional.reset_net(model)
        expected = model.eval()(x_seq)
    words = "0.1, 2.1, 5 normalised all time steps together in training"
    with pytest.warns(UserWarning, match=words):
        net = convert(model)
    assert net.state_dict().keys() == model.state_dict().keys()
    with torch.no_grad():
        found = torch.stack([net.eval()(x) for x in x_seq])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert expected.std() > 1e-3 and gradients(net.train())


class AttentionBlock(nn.Module):
    """Spiking self-attention of one time step, residual, as in Spikformer."""

    def __init__(self, width: int, traced: bool):
        super().__init__()
        self.qkv, self.norm, self.fire = nn.Linear(width, 3 * width), nn.LayerNorm(3 * width), lif()
        self.attend, self.project, self.last = lif(), nn.Linear(width, width), lif()
        self.traced = traced

    def forward(self, x):
        q, k, v = self.fire(self.norm(self.qkv(x))).chunk(3, -1)
        if self.traced:  # the spikes alone: no weight takes part in their product
            q, k, v = q[0], k[0], v[0]
        return self.last(self.project(self.attend(0.5 * (q @ k.transpose(1, 2) @ v)))) + x


def transformer(traced: bool) -> nn.Module:
    torch.manual_seed(0)
    first = nn.Linear(8, 6)
    net = nn.Sequential(
        nn.Flatten(2), first, lif(), AttentionBlock(6, traced), nn.Flatten(), nn.Linear(48, 4)
    ).double()
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=1.0)
    return net


def of_tokens() -> torch.Tensor:
    x_seq, _ = batch()
    return x_seq.flatten(3)[:, :, :, :64].reshape(STEPS, 6, 8, 2, 8)[:, :, :, 0]


def test_attention_is_exact_where_the_product_takes_spikes_and_refused_elsewhere():
    """d(q kᵀ v) goes through the spikes of this step: no weight is in the product.

    The reference writes OTTT out: a weight takes the trace of what enters it, and every other
    gradient is autograd's of the step.
    """
    x_seq, target = of_tokens(), batch()[1]
    with pytest.raises(InputError, match=r"matmul\(\) was called in AttentionBlock.*x\[0\]"):
        convert(transformer(False)).train()(x_seq[0])
    net = convert(transformer(True))
    loss = torch.nn.CrossEntropyLoss()
    learning.train_step(net, torch.optim.SGD(net.parameters(), 0.0), x_seq, target, loss_fn=loss)
    expected = attention_by_hand(net, x_seq, target, traces=True)
    for name, parameter in net.named_parameters():
        assert parameter.grad.norm() > 0, name
        assert relative_error(parameter.grad, expected[name]) < 1e-10, name
    control = attention_by_hand(net, x_seq, target, traces=False)
    assert relative_error(net[3].project.weight.grad, control["3.project.weight"]) > 1e-2
    # Without traces the product is exact as it stands.
    sltt = convert(transformer(False), "sltt")
    learning.train_step(sltt, torch.optim.SGD(sltt.parameters(), 0.0), x_seq, target, loss_fn=loss)
    for name, parameter in sltt.named_parameters():
        assert relative_error(parameter.grad, control[name]) < 1e-10, name


def attention_by_hand(net, x_seq, target, traces):
    """The gradients of `transformer`, neurons and traces written out."""
    weights = {k: p.detach().clone().requires_grad_() for k, p in net.named_parameters()}
    v, kept = {}, {}

    def fire(name, current):
        u = 0.5 * v.get(name, torch.zeros_like(current)).detach() + current
        spike = surrogate.Sigmoid()(u - 1.0)
        v[name] = (u - spike).detach()
        kept[name] = 0.5 * kept.get(name, 0.0) + spike.detach()
        return spike, kept[name] if traces else spike.detach()

    def linear(name, spike, trace):
        w, b = weights[f"{name}.weight"], weights[f"{name}.bias"]
        learns = F.linear(trace, w)
        return F.linear(spike, w.detach()) + learns - learns.detach() + b

    for x in x_seq:
        s, a = fire("first", F.linear(x.flatten(2), weights["1.weight"], weights["1.bias"]))
        current = linear("3.qkv", s, a)
        norm = weights["3.norm.weight"], weights["3.norm.bias"]
        (qkv, _) = fire("qkv", F.layer_norm(current, (18,), *norm))
        query, key, value = qkv.chunk(3, -1)
        attended = fire("attend", 0.5 * (query @ key.transpose(1, 2) @ value))
        out, trace = fire("last", linear("3.project", *attended))
        logits = linear("5", (out + s).flatten(1), (trace + a).flatten(1))
        (F.cross_entropy(logits, target) / len(x_seq)).backward()
    return {name: w.grad for name, w in weights.items()}


def test_a_module_in_two_places_stays_one():
    node = lif()
    net = convert(nn.Sequential(nn.Linear(4, 4), node, nn.Linear(4, 4), node))
    assert net[1] is net[3] and type(net[1]) is OTTTLIFNode and net[0] is not net[2]


def other_neurons(decay_input: bool, v_reset: float | None) -> nn.Module:
    torch.manual_seed(0)
    rest = (1.0, v_reset, surrogate.Sigmoid(), True)
    net = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        sj_neuron.IFNode(*rest),
        nn.ConvTranspose2d(6, 4, 2, stride=2, bias=False),
        nn.BatchNorm2d(4),
        sj_neuron.ParametricLIFNode(1.6, decay_input, *rest),
        nn.Flatten(),
        nn.Linear(4 * 16 * 16, 4),
    ).double()
    nn.init.normal_(net[0].weight, std=0.2)
    return net


@pytest.mark.parametrize(("decay_input", "v_reset"), [(True, 0.0), (False, None)])
def test_other_neurons(decay_input, v_reset):
    """IF and parametric LIF nodes: the same spikes and BPTT gradient, and w learns online."""
    model = other_neurons(decay_input, v_reset)
    net = convert(model, "bptt", share=False)
    assert list(net.state_dict()) == list(model.state_dict())
    found, exact = gradients(net), through_time(copy.deepcopy(model))
    assert max(relative_error(found[k], exact[k]) for k in exact) < 1e-10
    for rule in ("ottt", "ndot", "sltt"):
        net = convert(model, rule)
        assert net[4].w is model[4].w and net[1].tau == float("inf")
        found = gradients(net)
    found = gradients(convert(model))
    # Of the last neuron and of what lies behind it OTTT's gradient lacks nothing in space.
    assert relative_error(found["4.w"], exact["4.w"]) < 1e-12
    x_seq, _ = batch()
    net = convert(model.eval())
    with torch.no_grad():
        assert relative_error(learning.predict(net, x_seq), sum(model(x) for x in x_seq)) < 1e-12


def test_layers_of_pytorch_without_a_counterpart_stay_and_are_exact():
    """A transposed convolution behind an IF node takes the sum of all spikes."""
    torch.manual_seed(0)
    model = nn.Sequential(
        sj_neuron.IFNode(1.0, None, surrogate.Sigmoid(), True), nn.ConvTranspose2d(2, 3, 2)
    ).double()
    net = convert(model)
    assert type(net[1]) is nn.ConvTranspose2d
    x_seq, _ = batch()
    total, expected = torch.zeros_like(x_seq[0]), 0.0
    node = copy.deepcopy(model[0])
    for x in x_seq:
        spike = node(x)
        total = total + spike
        weight = model[1].weight
        value = F.conv_transpose2d(spike, weight, model[1].bias).detach()
        traced = F.conv_transpose2d(total, weight)
        (grad,) = torch.autograd.grad((2 * value * traced).sum(), weight)
        expected = expected + grad
        net(x).square().sum().backward()
    assert spike.mean() > 0.1 and relative_error(net[1].weight.grad, expected) < 1e-12


class OtherBatchNorm(nn.BatchNorm2d):
    """A batch norm of a user's."""


def test_names_all_that_stands_in_the_way():
    model = nn.Sequential(
        sj_layer.Conv2d(2, 4, 3),
        sj_layer.SpikingSelfAttention(8, 2),
        sj_neuron.QIFNode(),
        sj_layer.WSConv2d(4, 4, 3, padding=1, padding_mode="circular"),
        sj_neuron.KLIFNode(),
        nn.Sequential(sj_layer.TLastSeqToANNContainer(nn.Linear(4, 4)), sj_layer.SynapseFilter()),
        lif(),
        sj_neuron.NonSpikingLIFNode(),
        sj_layer.LinearRecurrentContainer(lif(), 4, 4),
        OtherBatchNorm(4),
        sj_layer.ThresholdDependentBatchNorm2d(1.0, 1.0, 4),
        sj_neuron.IzhikevichNode(),
        sj_neuron.EIFNode(),
        layer.Feedback(nn.Linear(4, 4)),
        sj_neuron.IFNode(),
        sj_neuron.ParametricLIFNode(),
    )
    with pytest.raises(InputError) as caught:
        convert(model)
    message = str(caught.value)
    for words in (
        "1 (SpikingSelfAttention takes all time steps [T, N, C, L] in its forward",
        "2 (QIFNode has dynamics of its own",
        '3 (padding_mode="circular"',
        "4 (KLIFNode has dynamics of its own",
        "5.0 (TLastSeqToANNContainer needs all time steps",
        "5.1 (SynapseFilter keeps a state",
        "7 (NonSpikingLIFNode does not spike: put neuron.MembraneReadout",
        "8 (LinearRecurrentContainer feeds back within a layer: lay a layer.Feedback",
        f"9 (OtherBatchNorm is a batch norm of {__name__}",
        "10 (ThresholdDependentBatchNorm2d normalises over time",
        "11 (IzhikevichNode has dynamics of its own",
        "12 (EIFNode has dynamics of its own",
        "13 (a Feedback is bound",
    ):
        assert words in message
    assert "Linear (" not in message and all(f"; {n} " not in message for n in (0, 6, 14, 15))
    with pytest.raises(InputError, match="did you mean sltt"):
        convert(nn.Sequential(lif()), "slt")
    with pytest.raises(InputError, match="has no neuron"):
        convert(nn.Sequential(nn.Linear(2, 2)))


def small_vgg(**kwargs) -> nn.Module:
    """SpikingJelly's VGG, whose classifier of 120 million weights gives way to a small one."""
    model = spiking_vgg.SpikingVGG([8, "M", 16], True, init_weights=False, **kwargs)
    model.classifier = nn.Sequential(sj_layer.Linear(16 * 49, 4))
    return model


def test_networks_that_repeat_their_input_are_refused():
    small = {"num_classes": 3, "T": 2}
    of_one_block = {"layers": (1, 1, 1, 1), "base_channels": 4, **small}
    attention = {"embed_dims": 16, "depths": 1, "num_heads": 2, **small}
    for network in (
        ms_resnet.MSResNet(**of_one_block),
        spike_driven_transformer.SpikeDrivenTransformer(**attention),
    ):
        name = type(network).__name__
        with pytest.raises(InputError, match=f"{name} shows its input T times by itself"):
            convert(network)


@pytest.mark.slow
def test_spikingjellys_networks():
    """Their model files as they are: batch norm, residual sums, torch.flatten."""
    for make, extra in (
        (spiking_resnet.spiking_resnet18, {"num_classes": 4}),
        (sew_resnet.sew_resnet18, {"num_classes": 4, "cnf": "ADD"}),
        (small_vgg, {}),
    ):
        torch.manual_seed(0)
        model = make(
            spiking_neuron=sj_neuron.LIFNode,
            surrogate_function=surrogate.ATan(),
            detach_reset=True,
            **extra,
        ).double()
        x_seq, target = torch.randn(3, 2, 3, 32, 32).double(), torch.tensor([0, 1])
        sum(learning.CrossEntropyMSE()(model(x), target) / 3 for x in x_seq).backward()
        exact = {k: p.grad.clone() for k, p in model.named_parameters()}
        for rule in ("bptt", "ottt"):
            net = convert(model, rule, share=False)
            optimizer = torch.optim.SGD(net.parameters(), 0.0)
            learning.train_step(net, optimizer, x_seq, target)
            found = {k: p.grad for k, p in net.named_parameters()}
            a, b = (torch.cat([g[k].flatten() for k in exact]) for g in (found, exact))
            if rule == "bptt":
                assert relative_error(a, b) < 1e-9
            else:
                assert 0.3 < F.cosine_similarity(a, b, dim=0) < 0.999
