"""Feedback connections: equation (4) in its recurrent form, and what may not be connected."""

import copy
import pickle

import pytest
import timm
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional as sj_functional
from torch import nn

from sj_ottt import InputError, analysis, layer, learning, set_rule
from sj_ottt.neuron import OTTTLIFNode
from tests.networks import relative_error

STEPS = 6


class Net(nn.Module):
    """Two layers of neurons; the second, or the first itself, feeds the first."""

    def __init__(self, itself: bool = False, trace_dtype: str = "packed"):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = (OTTTLIFNode(trace_dtype=trace_dtype) for _ in range(2))
        self.body = layer.OTTTSequential(
            layer.Linear(7, 9), self.first, layer.Linear(9, 8), self.second, layer.Linear(8, 4)
        )
        self.feedback = layer.Feedback(layer.Linear(9 if itself else 8, 9, bias=False))
        self.feedback.connect(self.first if itself else self.second, target=self.first)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.7)
        self.double()

    def forward(self, x):
        return self.body(x)


def batch():
    torch.manual_seed(1)
    return torch.randn(STEPS, 5, 7).double() + 0.3, torch.tensor([0, 1, 2, 3, 0])


def train(net, **kwargs):
    optimizer = torch.optim.SGD(net.parameters(), 0.0)
    learning.train_step(net, optimizer, *batch(), **kwargs)
    grads = {k: p.grad.clone() for k, p in net.named_parameters()}
    assert all(g.norm() > 0 for g in grads.values())
    return grads


@pytest.mark.parametrize("trace_dtype", ["packed", "float32"])
@pytest.mark.parametrize("itself", [False, True])
def test_the_gradient_is_equation_4(itself, trace_dtype):
    """Written out by hand: dynamics, traces, and the gradient of each step's loss alone."""
    net = Net(itself, trace_dtype)
    found = train(net)
    w1, b1, w2, b2, w3, b3, wf = (p.detach() for p in net.parameters())
    x_seq, target = batch()
    v1, a1 = (torch.zeros(5, 9).double() for _ in range(2))
    v2, a2 = (torch.zeros(5, 8).double() for _ in range(2))
    late = torch.zeros(5, 9 if itself else 8).double(), torch.zeros(5, 9 if itself else 8).double()
    expected = dict.fromkeys(("w1", "w2", "w3", "wf", "without"), 0.0)
    spike = net.first.surrogate_function
    for x in x_seq:
        u1 = (0.5 * v1 + x @ w1.t() + b1 + late[0] @ wf.t()).requires_grad_()
        s1 = spike(u1 - 1)
        u2 = 0.5 * v2 + s1 @ w2.t() + b2
        u2.retain_grad()
        s2 = spike(u2 - 1)
        y = s2 @ w3.t() + b3
        y.retain_grad()
        (learning.CrossEntropyMSE()(y, target) / STEPS).backward()
        v1, v2 = (u1 - s1).detach(), (u2 - s2).detach()
        a1, a2 = 0.5 * a1 + s1.detach(), 0.5 * a2 + s2.detach()
        expected["w1"] += u1.grad.t() @ x
        expected["w2"] += u2.grad.t() @ a1
        expected["w3"] += y.grad.t() @ a2
        expected["wf"] += u1.grad.t() @ late[1]
        expected["without"] += u1.grad.t() @ late[0]
        late = (s1.detach(), a1) if itself else (s2.detach(), a2)
    names = ("body.0", "body.2", "body.4", "feedback.synapse")
    for name, key in zip(names, ("w1", "w2", "w3", "wf"), strict=True):
        assert relative_error(found[f"{name}.weight"], expected[key]) < 1e-12
    # Control: the spike in place of the trace is another gradient.
    assert relative_error(expected["without"], expected["wf"]) > 1e-2


def test_bptt_through_feedback():
    """Autograd through a loop written by hand, the reset detached."""
    net = Net()
    found = train(set_rule(net, "bptt"))
    w1, b1, w2, b2, w3, b3, wf = leaves = [p.detach().requires_grad_() for p in net.parameters()]
    x_seq, target = batch()
    v1, v2, s2, loss = 0.0, 0.0, torch.zeros(5, 8).double(), 0.0
    for x in x_seq:
        u1 = 0.5 * v1 + x @ w1.t() + b1 + s2 @ wf.t()
        s1 = net.first.surrogate_function(u1 - 1)
        u2 = 0.5 * v2 + s1 @ w2.t() + b2
        s2 = net.first.surrogate_function(u2 - 1)
        v1, v2 = u1 - s1.detach(), u2 - s2.detach()
        loss = loss + learning.CrossEntropyMSE()(s2 @ w3.t() + b3, target) / STEPS
    loss.backward()
    for grad, leaf in zip(found.values(), leaves, strict=True):
        assert relative_error(grad, leaf.grad) < 1e-12
    ottt = train(set_rule(net, "ottt"))["feedback.synapse.weight"]
    assert relative_error(ottt, wf.grad) > 1e-2


@pytest.mark.parametrize("rule", ["ottt", "sltt", "ndot"])
def test_the_training_step_and_a_plain_loop_agree(rule):
    net = set_rule(Net(), rule)
    found = train(net)
    net.zero_grad()
    x_seq, target = batch()
    for x in x_seq:
        (learning.CrossEntropyMSE()(net(x), target) / STEPS).backward()
    assert all(relative_error(p.grad, found[k]) < 1e-12 for k, p in net.named_parameters())
    learning.reset_state(net)
    assert net.feedback.last is None


def test_a_copy_has_a_feedback_of_its_own():
    net = Net()
    expected = train(net)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        nn.init.zeros_(net.feedback.synapse.weight)  # of the original, which must not matter
        other.zero_grad()
        assert all(torch.equal(g, expected[k]) for k, g in train(other).items())
        assert net.feedback.last is None


def test_vggf():
    torch.manual_seed(0)
    model = timm.create_model("test_ottt_vggf", num_classes=4).double()
    plain = timm.create_model("test_ottt_vgg", num_classes=4).double()
    assert set(model.state_dict()) - set(plain.state_dict()) == {"feedback.synapse.weight"}
    plain.load_state_dict(model.state_dict(), strict=False)
    # 34 pixels end as 8, which times four are 32: the map is resized to what the neurons have.
    x_seq, target = 3 * torch.randn(4, 3, 3, 34, 34).double(), torch.tensor([0, 1, 3])
    # It starts as the network without feedback, and its weight starts to move.
    assert torch.equal(learning.predict(model, x_seq), learning.predict(plain, x_seq))
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    learning.train_step(model, optimizer, x_seq, target)
    moved = model.feedback.synapse.weight
    assert moved.shape == (8, 16, 3, 3) and moved.norm() > 0
    nn.init.normal_(moved, std=0.5)
    by_step = learning.predict(model, x_seq)
    assert not torch.equal(by_step, learning.predict(plain, x_seq))
    # Step mode "m" evaluates, step by step, and leaves the modes as they were.
    learning.reset_state(model)
    sj_functional.set_step_mode(model.eval(), "m")
    with torch.no_grad():
        torch.testing.assert_close(model(x_seq).sum(0), by_step)
    assert all(m.step_mode == "m" for m in model.modules() if hasattr(m, "step_mode"))


def test_the_papers_vggf():
    model = timm.create_model("ottt_vgg11f_ws")
    size = sum(p.numel() for p in model.parameters())
    plain = sum(p.numel() for p in timm.create_model("ottt_vgg11_ws").parameters())
    assert size - plain == 512 * 64 * 9 and not model.feedback.synapse.weight.any()


def test_upsampling_is_nearest():
    feedback = layer.Feedback(nn.Identity())
    source, target = nn.Identity(), nn.Identity()
    feedback.connect(source, target)
    target(torch.zeros(1, 1, 4, 4))
    small = source(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]))
    expected = F.interpolate(small, scale_factor=2, mode="nearest")
    assert torch.equal(target(torch.zeros(1, 1, 4, 4)), expected)
    feedback.disconnect()
    assert not target(torch.zeros(1, 1, 4, 4)).any()


def test_a_pruned_vggf_has_no_feedback():
    model = timm.create_model("test_ottt_vggf", features_only=True, out_indices=(0, 1))
    assert not any("feedback" in name for name, _ in model.named_parameters())
    assert [f.shape[1] for f in model(torch.rand(1, 3, 32, 32))] == [8, 12]


def test_refusals():
    net = Net()
    net.feedback.connect(source=net.first, target=net.second)
    with pytest.raises(InputError, match="a connection forward"):
        net(batch()[0][0])
    for target in ("first", "body"):
        net = Net().eval()
        net.feedback.connect(source=net, target=getattr(net, target))
        sj_functional.set_step_mode(net, "m")
        with pytest.raises(InputError, match='cannot run in step_mode="m"'):
            net(batch()[0])
    net = Net()
    net.feedback.connect(source=net.second, target=net.body[2])
    with pytest.raises(InputError, match="Linear, takes the spikes of a neuron"):
        net(batch()[0][0])
    net = Net()
    net.feedback.connect(source=OTTTLIFNode(), target=net.first)
    with pytest.raises(InputError, match="feedback connects no two layers of the model"):
        train(net)
    net = Net()
    net.feedback.disconnect()
    with pytest.raises(InputError, match="feedback connects no two layers of the model"):
        train(net)


def test_a_chain_with_feedback_evaluates_all_steps_in_one_call():
    net, (x_seq, _) = Net().eval(), batch()
    expected = torch.stack([net(x) for x in x_seq])
    learning.reset_state(net)
    sj_functional.set_step_mode(net, "m")
    assert torch.equal(net(x_seq), expected) and net.first.step_mode == "m"
    learning.reset_state(net)
    nn.init.zeros_(net.feedback.synapse.weight)
    assert not torch.equal(net(x_seq), expected)  # control


def test_bptt_in_step_mode_m_keeps_the_feedback():
    torch.manual_seed(0)
    model = timm.create_model("test_ottt_vggf", num_classes=4, rule="bptt").double()
    nn.init.normal_(model.feedback.synapse.weight, std=0.5)
    x_seq, target = 3 * torch.randn(4, 3, 3, 32, 32).double(), torch.tensor([0, 1, 3])
    learning.train_step(model, torch.optim.SGD(model.parameters(), 0.0), x_seq, target)
    expected = model.feedback.synapse.weight.grad.clone()
    model.zero_grad()
    sj_functional.set_step_mode(model, "m")
    sum(learning.CrossEntropyMSE()(y, target) / 4 for y in model(x_seq)).backward()
    assert relative_error(model.feedback.synapse.weight.grad, expected) < 1e-12


def test_a_synapse_outside_the_chain_takes_one_step_too():
    torch.manual_seed(0)
    first, second = OTTTLIFNode(), OTTTLIFNode()
    net = nn.Module()
    net.body = layer.OTTTSequential(
        layer.Conv2d(2, 4, 3, padding=1), first, layer.Conv2d(4, 3, 3, padding=1), second
    )
    net.feedback = layer.Feedback(layer.Conv2d(3, 4, 3, padding=1)).connect(second, first)
    nn.init.normal_(net.feedback.synapse.weight)
    x_seq = 2 * torch.randn(4, 2, 2, 6, 6)
    net.eval()
    expected = torch.stack([net.body(x) for x in x_seq])
    learning.reset_state(net)
    sj_functional.set_step_mode(net, "m")
    torch.testing.assert_close(net.body(x_seq), expected)
    assert net.feedback.synapse.step_mode == "m"


def test_a_network_may_stop_before_the_source():
    model = timm.create_model("test_ottt_vggf")
    x = torch.rand(2, 3, 32, 32)
    for _ in range(2):
        model.forward_intermediates(x, indices=[0], stop_early=True, intermediates_only=True)


@pytest.mark.parametrize("form", ["lambda", "grad"])
def test_fptt_of_a_network_with_feedback(form):
    net = Net()
    before = [p.detach().clone() for p in net.parameters()]
    fptt = learning.FPTT(torch.optim.SGD(net.parameters(), 0.1), 0.5, parts=2, form=form)
    learning.train_step(net, fptt, *batch())
    assert all(not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_the_feedback_of_a_neuron_itself_counts_among_the_operations():
    found = analysis.synaptic_operations(Net(), batch()[0])
    assert found["feedback.synapse"] > 0 and "body.0" not in found


def test_a_feedback_in_a_chain_is_refused():
    chain = layer.OTTTSequential(layer.Feedback(layer.Linear(4, 4)), layer.Linear(4, 4))
    with pytest.raises(InputError, match="keep it as an attribute of a module with a forward"):
        chain(torch.rand(2, 4))
