"""The training step, and predictions beside it."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from sj_ottt import InputError, layer, learning, set_rule
from sj_ottt.neuron import OTTTLIFNode
from tests.learning.networks import batch, network
from tests.networks import parameters, peak_saved_bytes


@pytest.mark.parametrize("update", ["accumulate", "online"])
def test_a_step_on_sure_probabilities_is_one_on_classes(update):
    x_seq, target = batch()
    nets = [network(), network(), network()]
    even = torch.full((4, 3), 1 / 3)
    for net, y in zip(nets, (target, F.one_hot(target).float(), even), strict=True):
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        learning.train_step(net, optimizer, x_seq, y, update=update)
    torch.testing.assert_close(parameters(nets[0]), parameters(nets[1]))
    assert not torch.allclose(parameters(nets[0]), parameters(nets[2]), atol=1e-4)


@pytest.mark.parametrize("update", ["accumulate", "online"])
def test_train_step_is_ottt_online_training_of_a_class_target(update):
    x_seq, target = batch()
    a, b = network(), network()
    opt_a, opt_b = (torch.optim.SGD(m.parameters(), 0.1) for m in (a, b))
    loss, logits = learning.train_step(a, opt_a, x_seq, target, update=update)
    loss_fn = learning.CrossEntropyMSE()
    targets = target.repeat(len(x_seq), 1)
    expected, outputs = learning.ottt_online_training(
        b,
        opt_b,
        x_seq.transpose(0, 1),
        targets.T,
        lambda y, c: loss_fn(y, c) / len(x_seq),
        update == "online",
    )
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(logits, outputs.sum(1))
    torch.testing.assert_close(parameters(a), parameters(b))
    assert not loss.requires_grad and not logits.requires_grad and logits.shape == (4, 3)


def test_a_static_batch_is_the_repeated_sequence():
    x, target = batch(steps=1)
    a, b = network(), network()
    out_a = learning.train_step(a, torch.optim.SGD(a.parameters(), 0.1), x[0], target, steps=4)
    out_b = learning.train_step(
        b, torch.optim.SGD(b.parameters(), 0.1), x.expand(4, -1, -1), target
    )
    torch.testing.assert_close(out_a, out_b)
    torch.testing.assert_close(parameters(a), parameters(b))


def test_online_differs_from_accumulate():
    x_seq, target = batch()
    results = []
    for update in ("accumulate", "online"):
        net = network()
        optimizer = torch.optim.SGD(net.parameters(), 1.0)
        learning.train_step(net, optimizer, x_seq, target, update=update)
        results.append(parameters(net))
    assert not torch.allclose(*results)


def test_state_is_reset_before_and_after():
    x_seq, target = batch()
    clean, dirty = network(), network()
    for n in (7, 4):  # another batch size, then the same one, never reset
        dirty(2 * torch.rand(n, 6))
    for net in (clean, dirty):
        learning.train_step(net, torch.optim.SGD(net.parameters(), 0.1), x_seq, target)
        assert net[1].v == 0.0 and net[1].trace is None
    torch.testing.assert_close(parameters(clean), parameters(dirty))


@pytest.mark.parametrize("update", ["accumulate", "online"])
def test_a_loss_that_is_not_finite_names_the_step_and_changes_nothing(update):
    x_seq, target = batch()
    net = network()
    before = parameters(net)
    seen = []

    def loss_fn(logits, target):
        seen.append(1)
        return F.cross_entropy(logits, target) * (float("nan") if len(seen) == 3 else 0.0)

    optimizer = torch.optim.SGD(net.parameters(), 0.1, weight_decay=0.0)
    with pytest.raises(InputError, match="time step 2 is nan"):
        learning.train_step(net, optimizer, x_seq, target, loss_fn=loss_fn, update=update)
    torch.testing.assert_close(parameters(net), before, rtol=0, atol=0)
    assert all(p.grad is None for p in net.parameters())
    assert net[1].v == 0.0


def test_bad_input_is_named():
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    x_seq, target = batch()

    def refuses(words, x=x_seq, y=target, model=net, **kwargs):
        before = parameters(model)
        with pytest.raises(InputError, match=words):
            learning.train_step(model, optimizer, x, y, **kwargs)
        torch.testing.assert_close(parameters(model), before, rtol=0, atol=0)

    nan = x_seq.clone()
    nan[2, 1, 3] = float("nan")
    refuses("not finite", x=nan)
    refuses("of shape", y=target[:2])
    refuses("target torch.int64 of shape", y=F.one_hot(target))
    refuses("target torch.float32 of shape", y=target.float())
    refuses("does not fit the logits", y=torch.full((4, 5), 0.2))
    refuses("steps=T", x=x_seq[0])
    refuses("steps=0", x=x_seq[0], steps=0)
    refuses("update=", update="bptt")
    refuses("model.train", model=network().eval())
    refuses("needs logits", x=x_seq, model=nn.Sequential(net, nn.Unflatten(1, (3, 1))))


def test_predict_equals_the_training_forward_pass_and_leaves_the_mode_alone():
    x_seq, target = batch()
    net = network()
    net.append(nn.Identity().eval())
    logits = learning.predict(net, x_seq)
    _, expected = learning.train_step(net, torch.optim.SGD(net.parameters(), 0.0), x_seq, target)
    torch.testing.assert_close(logits, expected)
    assert net.training and not net[-1].training
    logits.requires_grad_()  # no inference tensor escapes
    assert net[1].v == 0.0
    torch.testing.assert_close(
        learning.predict(net, x_seq[0], steps=3), learning.predict(net, x_seq[:1].repeat(3, 1, 1))
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["test_ottt_vgg", "test_ottt_nf_resnet", "test_ottt_nf_resnetd"])
def test_a_model_learns(name):
    """Four images of noise are told apart within a few updates, by either update rule."""
    for update in ("accumulate", "online"):
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=4)
        x, target = torch.randn(4, 3, 16, 16), torch.arange(4)
        optimizer = torch.optim.Adam(model.parameters(), 5e-3)
        losses = [
            learning.train_step(model, optimizer, x, target, update=update, steps=4)[0].item()
            for _ in range(25)
        ]
        assert losses[-1] < 0.5 * losses[0]
        assert (learning.predict(model, x, steps=4).argmax(1) == target).all()


def test_memory_is_flat_in_the_number_of_steps():
    def saved_bytes(steps: int) -> int:
        torch.manual_seed(0)
        model = timm.create_model("test_ottt_vgg")
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        x_seq, target = 2 * torch.randn(steps, 2, 3, 16, 16), torch.tensor([0, 1])
        return peak_saved_bytes(lambda: learning.train_step(model, optimizer, x_seq, target))

    assert saved_bytes(16) == saved_bytes(2) > 0


@pytest.mark.parametrize("update", ["accumulate", "online"])
@pytest.mark.parametrize(("dtype", "cosine"), [(torch.bfloat16, 0.9), (torch.float16, 0.98)])
def test_autocast_trains_in_the_same_direction(dtype, cosine, update):
    """float16 with a scaler; the state follows the activations' dtype."""
    deltas = []
    for half in (None, dtype):
        torch.manual_seed(0)
        model = timm.create_model("test_ottt_vgg", in_chans=2)
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0) if half is torch.float16 else None
        before = parameters(model)
        torch.manual_seed(1)
        x_seq, target = 3 * torch.randn(4, 8, 2, 16, 16), torch.arange(8)
        with torch.autocast("cpu", half, enabled=half is not None):
            learning.train_step(model, optimizer, x_seq, target, update=update, scaler=scaler)
        assert scaler is None or scaler.get_scale() == 256.0
        deltas.append(parameters(model) - before)
    assert deltas[0].norm() > 0
    assert F.cosine_similarity(*deltas, dim=0) > cosine


@pytest.mark.parametrize("update", ["accumulate", "online"])
def test_a_scaler_leaves_an_overflow_out_and_halves_its_scale(update):
    model, (x_seq, target) = network(), batch()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler, before = torch.amp.GradScaler("cpu", init_scale=1e38), parameters(model)
    with torch.autocast("cpu", torch.float16):
        learning.train_step(model, optimizer, x_seq, target, update=update, scaler=scaler)
    assert torch.equal(parameters(model), before) and scaler.get_scale() < 1e38


@pytest.mark.parametrize("rule", ["ottt", "bptt"])
def test_a_loss_that_no_parameter_reaches_is_named(rule):
    x_seq, target = batch()
    net = set_rule(network(), rule)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for wrong in ({"loss_fn": lambda y, t: y.detach().sum()}, {"model": net.requires_grad_(False)}):
        with pytest.raises(InputError, match="the loss depends on no parameter that learns"):
            learning.train_step(wrong.pop("model", net), optimizer, x_seq, target, **wrong)


@pytest.mark.parametrize("update", ["accumulate", "online"])
def test_what_learns_behind_a_feedback_alone_learns_from_the_second_step_on(update):
    torch.manual_seed(0)
    first, second = OTTTLIFNode(), OTTTLIFNode()
    chain = layer.OTTTSequential(first, layer.Linear(5, 5), second).requires_grad_(False)
    feedback = layer.Feedback(layer.Linear(5, 5, bias=False)).connect(second, first)
    weight = nn.init.normal_(feedback.synapse.weight)
    before = weight.clone()

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.chain, self.feedback = chain, feedback

        def forward(self, x):
            return self.chain(x)

    net = Network()
    optimizer = torch.optim.SGD([weight], 0.1)
    x_seq = 2 * torch.rand(4, 3, 5)
    learning.train_step(
        net, optimizer, x_seq, x_seq[0], loss_fn=lambda y, t: (y - t).square().sum(), update=update
    )
    assert not torch.equal(weight, before)


@pytest.mark.parametrize("rule", ["ottt", "bptt"])
@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("kind", [layer.Conv2d, layer.WSConv2d, layer.WSLinear])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # other kernels of PyTorch's
def test_what_is_frozen_changes_no_other_gradient(dtype, kind, chunk, rule):
    torch.manual_seed(0)
    first = kind(18, 8) if kind is layer.WSLinear else kind(2, 3, 3, padding=1)
    outputs = 8 if kind is layer.WSLinear else 27
    before = [layer.Flatten()] if kind is layer.WSLinear else []
    readout = layer.Linear(outputs, 3)
    net = layer.OTTTSequential(*before, first, OTTTLIFNode(), layer.Flatten(), readout).to(dtype)
    set_rule(net, rule)
    x_seq = 3 * torch.rand(3, 4, 2, 3, 3, dtype=dtype)

    def gradients(learns):
        for name, parameter in net.named_parameters():
            parameter.grad = None
            parameter.requires_grad_(name in learns)
        optimizer = torch.optim.SGD(net.parameters(), 0.0)
        learning.train_step(net, optimizer, x_seq, torch.tensor([0, 1, 2, 0]), chunk=chunk)
        return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}

    names = [name for name, _ in net.named_parameters()]
    whole = gradients(names)
    assert whole.keys() == set(names) and all(grad.any() for grad in whole.values())
    own = [name for name, _ in first.named_parameters()]
    for chosen in range(1, 2 ** len(own)):
        learns = {name for i, name in enumerate(own) if chosen >> i & 1}
        learns = {name for name in names if name.split(".")[-1] in learns}
        found = gradients(learns)
        assert found.keys() == learns
        for name, grad in found.items():
            exact = {} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-12}
            torch.testing.assert_close(grad, whole[name], **exact)
