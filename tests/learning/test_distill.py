"""Distillation: the gradient of stage targets under each rule, against networks written by hand."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from sj_ottt import InputError, layer, set_rule
from sj_ottt.learning import Distillation, StageTarget, predict, train_step
from sj_ottt.neuron import OTTTLIFNode

RULES = ("ottt", "sltt", "bptt")
TARGETS = [
    StageTarget("s1", 3, width=4),  # spikes
    StageTarget("c2", 2, weight=0.7, width=5),  # a real-valued current
    StageTarget("s2", 6, pooled=True, weight=3.0, width=5),
]


class Net(nn.Module):
    """Two convolutions with neurons, and a linear readout of the pooled spikes' current."""

    def __init__(self):
        super().__init__()
        self.c1, self.s1 = layer.Conv2d(2, 4, 3, padding=1), OTTTLIFNode(v_threshold=0.6)
        self.c2, self.s2 = layer.Conv2d(4, 5, 3, padding=1), OTTTLIFNode(v_threshold=0.6)
        self.c3, self.s3 = layer.Conv2d(5, 4, 3, padding=1), OTTTLIFNode(v_threshold=0.6)
        self.fc = layer.Linear(4, 3)

    def forward(self, x):
        for block in (self.c1, self.s1, self.c2, self.s2, self.c3, self.s3):
            x = block(x)
        return self.fc(x.mean((2, 3)))


def student(rule, seed=0):
    torch.manual_seed(seed)
    net = set_rule(Net(), rule)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.5)
    distillation = Distillation(net, TARGETS).double()
    assert not any(parameter.any() for parameter in distillation.maps.parameters())
    for parameter in distillation.maps.parameters():
        nn.init.normal_(parameter, std=0.5)
    return distillation


def batch(steps, n=3):
    torch.manual_seed(1)
    x_seq = torch.randn(steps, n, 2, 6, 6, dtype=torch.float64)
    maps = [torch.randn(n, *shape, dtype=torch.float64) for shape in ((3, 6, 6), (2, 6, 6), (6,))]
    return x_seq, (torch.tensor([0, 2, 1]), maps)


class Spike(torch.autograd.Function):
    """1[u ≥ V_th], with the gradient of the sigmoid of slope 4."""

    @staticmethod
    def forward(ctx, u):
        ctx.save_for_backward(u)
        return (u >= 0).to(u)

    @staticmethod
    def backward(ctx, grad):
        (u,) = ctx.saved_tensors
        s = torch.sigmoid(4 * u)
        return grad * 4 * s * (1 - s)


def by_hand(p, x_seq, target, rule, traced_maps=False):
    """Return the loss summed over the steps; `traced_maps` gives the maps a trace, wrongly."""
    label, (first, second, third) = target
    v, traces, total = [0.0] * 3, [0.0] * 3, 0.0

    def synapse(op, name, spike, trace):
        weight, bias = p[f"{name}.weight"], p[f"{name}.bias"]
        if rule == "bptt":
            return op(spike, weight, bias)
        learns = op(trace, weight, None)
        return op(spike, weight.detach(), bias) + learns - learns.detach()

    def conv(x, weight, bias):
        return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)

    for x in x_seq:
        spikes, currents, spike, trace = [], [], x, x
        for i in range(3):
            current = synapse(conv, f"model.c{i + 1}", spike, trace)
            u = 0.5 * (v[i] if rule == "bptt" else torch.as_tensor(v[i]).detach()) + current
            spike = Spike.apply(u - 0.6)
            v[i] = u - 0.6 * spike.detach()
            traces[i] = spike.detach() + (0.5 * traces[i] if rule == "ottt" else 0)
            trace = traces[i]
            spikes.append(spike)
            currents.append(current)
        y = synapse(F.linear, "model.fc", spike.mean((2, 3)), trace.mean((2, 3)))
        held = [spikes[0], currents[1], spikes[1].mean((2, 3), keepdim=True)]
        of = [traces[0], currents[1].detach(), traces[1].mean((2, 3), keepdim=True)]
        mapped = [
            synapse(conv, f"maps.{i}", h, t if traced_maps else h.detach())
            for i, (h, t) in enumerate(zip(held, of, strict=True))
        ]
        loss = F.cross_entropy(y, label) + F.mse_loss(mapped[0], first)
        loss = loss + 0.7 * F.mse_loss(mapped[1], second)
        total = total + loss + 3 * F.mse_loss(mapped[2].flatten(1), third)
    return total / len(x_seq)


def gradients(net, x_seq, target):
    loss, _ = train_step(
        net, torch.optim.SGD(net.parameters(), 0.0), x_seq, target, loss_fn=net.loss
    )
    return loss, {name: parameter.grad for name, parameter in net.named_parameters()}


def reference(net, x_seq, target, rule, **broken):
    leaves = {n: p.detach().clone().requires_grad_() for n, p in net.named_parameters()}
    loss = by_hand(leaves, x_seq, target, rule, **broken)
    return loss.detach(), dict(
        zip(leaves, torch.autograd.grad(loss, [*leaves.values()]), strict=True)
    )


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("rule", RULES)
def test_gradients_are_those_of_the_network_written_out(rule, steps):
    x_seq, target = batch(steps)
    found = gradients(student(rule), x_seq, target)
    torch.testing.assert_close(found, reference(student(rule), x_seq, target, rule))
    assert all(grad.abs().max() > 1e-4 for grad in found[1].values())


def test_in_one_step_every_rule_gives_the_gradient_of_autograd():
    x_seq, target = batch(1)
    plain = reference(student("bptt"), x_seq, target, "bptt")
    for rule in RULES:
        torch.testing.assert_close(gradients(student(rule), x_seq, target), plain)


def test_the_comparison_notices_maps_with_a_trace_and_another_rule():
    x_seq, target = batch(4)
    _, found = gradients(student("ottt"), x_seq, target)
    _, traced = reference(student("ottt"), x_seq, target, "ottt", traced_maps=True)
    wrong = [n for n in found if not torch.allclose(found[n], traced[n])]
    assert wrong == ["maps.0.weight", "maps.2.weight"]  # those of stages that hand on spikes
    _, other = reference(student("ottt"), x_seq, target, "sltt")
    assert not torch.allclose(found["model.c2.weight"], other["model.c2.weight"])


def test_the_model_stays_as_it_was_and_predicts_as_alone():
    net = student("ottt")
    x_seq, _ = batch(3)
    outputs, mapped = predict(net, x_seq)
    torch.testing.assert_close(outputs, predict(net.model, x_seq))
    assert [list(m.shape) for m in mapped] == [[3, 3, 6, 6], [3, 2, 6, 6], [3, 6]]
    assert not any(module._forward_hooks for module in net.modules())


def test_widths_of_stages_come_from_feature_info_and_the_readout_says_what_it_predicts():
    model = timm.create_model("test_ottt_nf_resnet", in_chans=2, num_classes=3, readout="membrane")
    net = Distillation(model, [StageTarget("layer1", 7), StageTarget("layer2", 9, pooled=True)])
    assert [m.in_channels for m in net.maps] == [f["num_chs"] for f in model.feature_info[1:]]
    assert net.prediction == "last"
    x_seq = torch.randn(2, 2, 2, 32, 32)
    target = (torch.tensor([0, 1]), [torch.randn(2, 7, 8, 8), torch.randn(2, 9)])
    optimizer = torch.optim.Adam(net.parameters())
    loss, (logits, _) = train_step(net, optimizer, x_seq, target, loss_fn=net.loss)
    assert logits.shape == (2, 3) and loss > 2


def test_what_does_not_fit_is_named():
    net = student("ottt")
    x_seq, (label, maps) = batch(2)

    def refuses(words, target, model=net):
        with pytest.raises(InputError, match=words):
            gradients(model, x_seq, target)

    refuses("2 targets for 3 stages", (label, maps[:2]))
    refuses(r"for c2 has shape \[3, 2, 3, 3\]", (label, [maps[0], maps[1][..., ::2, ::2], maps[2]]))
    with pytest.raises(InputError, match="no stage 'c4'; did you mean"):
        Distillation(net.model, [StageTarget("c4", 2, width=4)])
    with pytest.raises(InputError, match="does not tell how many channels stage c2"):
        Distillation(net.model, [StageTarget("c2", 2)])
    with pytest.raises(InputError, match="a weight above 0"):
        Distillation(net.model, [StageTarget("c2", 2, weight=0, width=5)])
    vector = Distillation(net.model, [StageTarget("fc", 2, width=3)]).double()
    refuses(r"stage fc gave of shape \[3, 3\]", (label, [maps[2]]), vector)


def test_a_teacher_does_not_learn_and_is_not_rounded():
    net = student("ottt")
    x_seq, (label, maps) = batch(3)
    _, expected = gradients(net, x_seq, (label, maps))
    teacher = nn.Conv2d(1, 1, 1).double()
    with torch.inference_mode():
        inferred = [target.clone() for target in maps]
    alive = [target + 0 * teacher.weight.sum() for target in maps]
    for target in (inferred, alive):
        _, found = gradients(net, x_seq, (label, target))
        for name, grad in found.items():
            assert torch.equal(grad, expected[name])
    assert teacher.weight.grad is None
    fine = [target.double() * 0 + 1000.7 for target in maps]
    net = net.float()
    with torch.autocast("cpu", torch.bfloat16):
        found = net.loss(net(x_seq[0].float()), (label, fine))
    expected = net.loss(net(x_seq[0].float()), (label, fine))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0, check_dtype=False)
