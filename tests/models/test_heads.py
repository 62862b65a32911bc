"""What stands behind a network's stages: a membrane readout, or a decoder or head of one's own."""

import copy

import pytest
import timm
import torch
from spikingjelly.activation_based import surrogate
from torch import nn
from torch.nn import functional as F

from sj_ottt import InputError, learning
from sj_ottt.layer import Pair
from sj_ottt.learning.rules import rule_of
from sj_ottt.neuron import OTTTLIFNode
from tests.models.test_models import set_mode, wake
from tests.networks import relative_error


def online_gradients(model, x_seq, loss) -> dict[str, torch.Tensor]:
    """Return the gradient of one backward pass a step."""
    learning.reset_state(model)
    model.zero_grad()
    for t, x in enumerate(x_seq):
        loss(model(x), t).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def squared(y: torch.Tensor, t: int) -> torch.Tensor:
    return ((y - 0.1 * t) ** 2).sum()


@pytest.mark.parametrize("name", ["test_ottt_vgg", "test_ottt_nf_resnet"])
def test_membrane_readout(name):
    """Its classifier's gradient is BPTT's, under the names that the classifier always has."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3, readout="membrane").double()
    wake(model)
    plain = timm.create_model(name, num_classes=3).state_dict()
    assert list(model.state_dict()) == list(plain) and model.get_classifier() is model.fc
    assert model.prediction == "last" and model.integrator.rule is rule_of(model)
    x_seq = 2 * torch.randn(4, 2, 3, 32, 32).double()
    inputs: list[torch.Tensor] = []

    def note(module, args):
        inputs.append(args[0][0].detach() if isinstance(args[0], list) else args[0].detach())

    hook = model.integrator.register_forward_pre_hook(note)
    found = online_gradients(model, x_seq, squared)
    hook.remove()
    fc, o, total = copy.deepcopy(model.fc), 0.0, 0.0
    fc.zero_grad()
    for t, x in enumerate(inputs):
        o = 0.5 * o + F.linear(x, fc.weight, fc.bias)
        total = total + squared(o, t)
    total.backward()
    assert min(float(x.norm()) for x in inputs[1:]) > 0
    assert relative_error(found["fc.weight"], fc.weight.grad) < 1e-12
    assert relative_error(found["fc.bias"], fc.bias.grad) < 1e-12
    traced = timm.create_model(name, num_classes=3).double()
    traced.load_state_dict(model.state_dict())
    control = online_gradients(traced, x_seq, squared)
    assert relative_error(control["fc.weight"], fc.weight.grad) > 0.05
    prediction = learning.predict(model, x_seq)
    set_mode(model.eval(), "m")
    learning.reset_state(model)
    assert relative_error(model(x_seq)[-1], prediction) < 1e-12
    model.train().reset_classifier(0)
    assert model.integrator is None and model.prediction == "sum"
    model.reset_classifier(5)
    assert model.integrator is not None and model.fc.out_features == 5


def test_membrane_readout_behind_feedback():
    """Step mode "m" runs step by step there, the membrane too."""
    torch.manual_seed(0)
    model = wake(timm.create_model("test_ottt_vggf", readout="membrane")).double().eval()
    nn.init.normal_(model.feedback.synapse.weight, std=0.1)
    x_seq = 2 * torch.randn(4, 2, 3, 16, 16).double()
    prediction = learning.predict(model, x_seq)
    assert prediction.std() > 0
    assert relative_error(set_mode(model, "m")(x_seq)[-1], prediction) < 1e-12


def test_membrane_readout_follows_a_rule_and_is_refused_where_there_is_one():
    model = timm.create_model("test_ottt_vgg", readout="membrane", rule="bptt")
    model.reset_classifier(4)
    assert model.integrator.rule.name == "bptt"
    for name in ("test_ltc_rnn", "test_ltc_cnn"):
        with pytest.raises(InputError, match="leaky readout of its own"):
            timm.create_model(name, readout="membrane")
    with pytest.raises(InputError, match="did you mean membrane"):
        timm.create_model("test_ottt_vgg", readout="membran")


class UNet(nn.Module):
    """The maps of a backbone, upsampled and joined: transposed convolutions of PyTorch's."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone
        self.up = nn.ConvTranspose2d(16, 12, 2, stride=2)
        self.sn = OTTTLIFNode(v_threshold=0.3)
        self.up2 = nn.ConvTranspose2d(24, 8, 2, stride=2)
        self.sn2 = OTTTLIFNode(v_threshold=0.3)
        self.out = nn.Conv2d(16, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low, mid, high = self.backbone(x)
        up = self.sn(self.up(high))
        up = self.sn2(self.up2(torch.cat((up, mid), 1)))
        return self.out(torch.cat((up, low), 1))


def by_hand(net: UNet, pairs, x_seq) -> dict[str, torch.Tensor]:
    """Return the decoder's gradient and the maps', with the traces written out.

    A synapse's value and its input's gradient take the spike, its weights' gradient the trace.
    """
    net.zero_grad()
    names = ("up", "up2", "out")
    maps_grads = []

    def synapse(function, layer, s, a, **kwargs):
        traced = function(a, layer.weight, layer.bias, **kwargs)
        value = function(s, layer.weight.detach(), layer.bias.detach(), **kwargs)
        return value + (traced - traced.detach())

    v = [torch.zeros(()).double()] * 2
    a_up = [torch.zeros(()).double()] * 2

    def neuron(i, current):
        u = 0.5 * v[i] + current
        spike = surrogate.Sigmoid()(u - 0.3)
        v[i] = (u - 0.3 * spike).detach()
        a_up[i] = 0.5 * a_up[i] + spike.detach()
        return spike, a_up[i]

    for t in range(len(x_seq)):
        maps = [(s.clone().requires_grad_(), a) for s, a in pairs[t]]
        (s0, a0), (s1, a1), (s2, a2) = maps
        up, a = neuron(0, synapse(F.conv_transpose2d, net.up, s2, a2, stride=2))
        joined, traces = torch.cat((up, s1), 1), torch.cat((a, a1), 1)
        up, a = neuron(1, synapse(F.conv_transpose2d, net.up2, joined, traces, stride=2))
        y = synapse(F.conv2d, net.out, torch.cat((up, s0), 1), torch.cat((a, a0), 1))
        squared(y, t).backward()
        maps_grads.append([s.grad for s, _ in maps])
    grads = {f"{n}.{k}": p.grad for n in names for k, p in getattr(net, n).named_parameters()}
    return grads | {f"map{i}": torch.stack([g[i] for g in maps_grads]) for i in range(3)}


def test_a_decoder_on_feature_maps_is_exact():
    """A U-Net of one's own on `features_only`, against traces written out by hand."""
    torch.manual_seed(0)
    backbone = timm.create_model("test_ottt_vgg", features_only=True)
    net = UNet(backbone).double()
    wake(net)
    pairs, map_grads = [], [[], [], []]

    def note(module, args, maps):
        assert all(isinstance(pair, Pair) for pair in maps)
        pairs.append([(pair.spike.detach().clone(), pair.values.clone()) for pair in maps])
        for i, pair in enumerate(maps):
            pair.spike.retain_grad()
            kept.append((i, pair.spike))

    kept: list = []
    hook = backbone.register_forward_hook(note)
    x_seq = 2 * torch.randn(4, 2, 3, 16, 16).double()
    found = {k: g for k, g in online_gradients(net, x_seq, squared).items() if "backbone" not in k}
    hook.remove()
    assert all(p.grad.norm() > 0 for p in net.parameters())
    exact = by_hand(net, pairs, x_seq)
    assert all(spike.mean() > 0.01 for step in pairs[1:] for spike, _ in step)
    assert all(relative_error(found[k], exact[k]) < 1e-12 for k in found)
    # Decoder's gradient for the last map alone: only the decoder uses it.
    for i, spike in kept:
        map_grads[i].append(spike.grad)
    assert relative_error(torch.stack(map_grads[2]), exact["map2"]) < 1e-12
    without = by_hand(net, [[(s, s) for s, _ in step] for step in pairs], x_seq)
    assert relative_error(without["up.weight"], exact["up.weight"]) > 0.05
    net.eval()
    assert all(type(m) is torch.Tensor for m in backbone(x_seq[0]))


def test_a_head_of_ones_own_is_exact():
    """Features without a classifier are pairs in training, and tensors in evaluation."""
    torch.manual_seed(0)
    body = timm.create_model("test_ottt_vgg", num_classes=0)
    head = nn.Linear(16, 3)
    net = nn.Sequential(body, head).double()
    wake(net)
    x_seq = 2 * torch.randn(4, 2, 3, 16, 16).double()
    features = []
    hook = body.register_forward_hook(lambda module, args, out: features.append([*out]))
    found = online_gradients(net, x_seq, squared)
    hook.remove()
    expected = torch.zeros_like(head.weight)
    for t, (spike, trace) in enumerate(features):
        expected += 2 * (head(spike) - 0.1 * t).T @ trace
    assert relative_error(found["1.weight"], expected.detach()) < 1e-12
    assert isinstance(body.forward_head(body.forward_features(x_seq[0]), pre_logits=True), Pair)
    last, maps = body.forward_intermediates(x_seq[0])
    assert isinstance(last, Pair) and all(isinstance(each, Pair) for each in maps)
    net.eval()
    assert type(body(x_seq[0])) is torch.Tensor


@pytest.mark.parametrize("rule", ["sltt", "bptt"])
def test_features_under_other_rules_train(rule):
    torch.manual_seed(0)
    body = timm.create_model("test_ottt_vgg", num_classes=0, rule=rule)
    net = nn.Sequential(body, nn.Linear(16, 3), nn.Tanh()).double()
    wake(net)
    x_seq, target = 2 * torch.randn(4, 2, 3, 16, 16).double(), torch.tensor([0, 1])
    learning.train_step(net, torch.optim.SGD(net.parameters(), 0.1), x_seq, target)
    assert all(p.grad.norm() > 0 for p in net.parameters())
