"""Checkpoints of the authors' layout, against their published networks written out by hand."""

import hashlib

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from sj_ottt import InputError, learning, zoo
from sj_ottt.models import authors
from sj_ottt.zoo.cards import read_card

GAMMA, DECAY, ALPHA = 2.74, 0.5, 0.2


def conv(state, name, x, stride=1, padding=1):
    """Their convolution with scaled weight standardization."""
    weight, gain, bias = (state[f"{name}.{part}"] for part in ("weight", "gain", "bias"))
    fan_in = weight[0].numel()
    mean = weight.mean((1, 2, 3), keepdim=True)
    var = weight.var((1, 2, 3), keepdim=True)
    weight = gain * (weight - mean) / (var * fan_in + 1e-4).sqrt()
    return F.conv2d(x, weight, bias, stride, padding)


class Membranes:
    """Their neurons: u = 0.5 v + I, a spike at 1, a soft reset; one membrane a name."""

    def __init__(self):
        self.v, self.spikes = {}, []

    def __call__(self, name, current):
        u = DECAY * self.v.get(name, 0.0) + current
        spike = (u >= 1).to(u.dtype)
        self.v[name] = u - spike
        self.spikes.append(spike.mean().item())
        return GAMMA * spike


def nf_resnet(state, depths, convs, fire, x):
    """One time step of their NF-ResNet; a bottleneck has three convolutions."""
    x = F.avg_pool2d(conv(state, "conv1", x, 2, 3), 3, 2, 1)
    variance = 1.0
    for stage, depth in enumerate(depths, 1):
        for block in range(depth):
            at = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            z = fire(f"{at}.1", x / variance**0.5)
            changes = f"{at}.downsample.weight" in state
            skip = conv(state, f"{at}.downsample", z, stride, 0) if changes else x
            variance = (1.0 if changes else variance) + ALPHA**2
            for i in range(1, convs + 1):
                kernel = state[f"{at}.conv{i}.weight"].shape[-1]
                strided = stride if i == (1 if convs == 2 else 2) else 1
                z = fire(f"{at}.{i}", z) if i > 1 else z
                z = conv(state, f"{at}.conv{i}", z, strided, kernel // 2)
            x = z * state[f"{at}.skipinit_gain"] * ALPHA + skip
    return F.linear(x.mean((2, 3)), state["fc.weight"], state["fc.bias"])


def vgg(state, layout, fire, x, last=None):
    """One time step of their VGG, or with `last`, the feature map before, of their VGG-F."""
    feedback = "fb_conv.weight" in state
    number = -1 if feedback else 0
    for pooled, count in layout:
        if pooled:
            x, number = F.avg_pool2d(x, 2), number + 1
        for _ in range(count):
            name = "conv1" if number < 0 else f"features.{number}"
            current = conv(state, name, x)
            if feedback and number < 0 and last is not None:
                up = F.interpolate(last, scale_factor=x.shape[-1] // last.shape[-1], mode="nearest")
                current = current + F.conv2d(
                    up, state["fb_conv.weight"], state["fb_conv.bias"], padding=1
                )
            x, number = fire(name, current), number + 3
    pooled = x.mean((2, 3))
    return F.linear(pooled, state["classifier.0.weight"], state["classifier.0.bias"]), x


def basic_state(depths, widths, in_chans, classes):
    """A state under their names, with all that training would have given values."""
    state = ws("conv1", widths[0], in_chans, 7)
    channels = widths[0]
    for stage, (depth, width) in enumerate(zip(depths, widths, strict=True), 1):
        for block in range(depth):
            at = f"layer{stage}.{block}"
            state |= {f"{at}.skipinit_gain": torch.randn(())}
            state |= ws(f"{at}.conv1.op", width, channels, 3) | ws(
                f"{at}.conv2.op", width, width, 3
            )
            if channels != width:
                state |= ws(f"{at}.downsample.op", width, channels, 1)
            channels = width
    return state | fc("fc", classes, channels)


def bottleneck_state(depths, widths, in_chans, classes):
    state = ws("conv1", widths[0], in_chans, 7)
    channels = widths[0]
    for stage, (depth, width) in enumerate(zip(depths, widths, strict=True), 1):
        for block in range(depth):
            at = f"layer{stage}.{block}"
            state |= {f"{at}.skipinit_gain": torch.randn(())}
            state |= ws(f"{at}.conv1.op", width, channels, 1) | ws(
                f"{at}.conv2.op", width, width, 3
            )
            state |= ws(f"{at}.conv3.op", 4 * width, width, 1)
            if block == 0:
                state |= ws(f"{at}.downsample.op", 4 * width, channels, 1)
            channels = 4 * width
    return state | fc("fc", classes, channels)


def vgg_state(stages, in_chans, classes, feedback=False):
    state, channels, number = {}, in_chans, -1 if feedback else 0
    for i, widths in enumerate(stages):
        number += i > 0
        for width in widths:
            traced = ".op" if channels != in_chans else ""  # the first one is not
            name = "conv1" if number < 0 else f"features.{number}{traced}"
            state |= ws(name, width, channels, 3)
            channels, number = width, number + 3
    if feedback:
        first = stages[0][0]
        state["fb_conv.op.weight"] = 0.2 * torch.randn(first, channels, 3, 3)
        state["fb_conv.op.bias"] = torch.randn(first)
    return state | fc("classifier.0.op", classes, channels)


def ws(name, out, inputs, kernel):
    return {
        f"{name}.weight": torch.randn(out, inputs, kernel, kernel),
        f"{name}.gain": 0.8 + 0.4 * torch.rand(out, 1, 1, 1),
        f"{name}.bias": 0.3 * torch.randn(out),
    }


def fc(name, classes, inputs):
    return {f"{name}.weight": torch.randn(classes, inputs), f"{name}.bias": torch.randn(classes)}


def checkpoint(path, net):
    """As their scripts write it."""
    other = {"optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}, "epoch": 9}
    torch.save({"net": net, "max_test_acc": 0.5, **other}, path)
    return path


VGG5 = ((48,), (96,), (128, 128))
TINY = ((8,), (12,), (16,))
NF18 = (2, 2, 2, 2), (64, 128, 256, 512)
CASES = {
    "ottt_vgg5_ws": (lambda: vgg_state(VGG5, 3, 10), 3, VGG5),
    "test_ottt_vgg": (lambda: vgg_state(TINY, 2, 4), 2, TINY),
    "test_ottt_vggf": (lambda: vgg_state(TINY, 3, 4, feedback=True), 3, TINY),
    "test_ottt_nf_resnet": (lambda: bottleneck_state((1, 2), (8, 16), 3, 5), 3, ((1, 2), 3)),
    "ottt_nf_resnet18": (lambda: basic_state(*NF18, 2, 6), 2, (NF18[0], 2)),
}


@pytest.mark.parametrize(
    "name",
    [n if n != "ottt_nf_resnet18" else pytest.param(n, marks=pytest.mark.slow) for n in CASES],
)
def test_outputs_are_those_of_the_published_network(name, tmp_path, monkeypatch):
    torch.manual_seed(0)
    build, in_chans, layout = CASES[name]
    net = build()
    file = checkpoint(tmp_path / "checkpoint_max.pth", net)
    monkeypatch.setenv("SJ_OTTT_ZOO", str(tmp_path / "zoo"))
    entry = authors.import_checkpoint(file, name, "ottt_a_in1k")
    assert entry.file == tmp_path / "zoo" / f"{name}.ottt_a_in1k.safetensors"
    classes = entry.cfg["num_classes"]
    model = zoo.create(entry.name, classes, in_chans=in_chans, pretrained=True).double().eval()

    plain = {key.replace(".op.", "."): value.double() for key, value in net.items()}
    fire, last = Membranes(), None
    x_seq = 2 * torch.randn(5, 2, in_chans, 32, 32, dtype=torch.double)
    with torch.no_grad():
        for x in x_seq:
            if "vgg" in name:
                stages = [(i > 0, len(widths)) for i, widths in enumerate(layout)]
                expected, last = vgg(plain, stages, fire, x, last)
            else:
                expected = nf_resnet(plain, *layout, fire, x)
            torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-9)
    awake = sum(0 < rate < 1 for rate in fire.spikes) / len(fire.spikes)
    assert awake > 0.9 and expected.std() > 0

    card = read_card(entry)
    assert card.sha256 == hashlib.sha256(entry.file.read_bytes()).hexdigest()
    assert card.provenance["imported_from"] == "checkpoint_max.pth" and not card.results
    if in_chans == 3:
        assert entry.cfg["mean"][0] > 0.4
    else:
        assert entry.cfg["input_size"][0] == 2 and entry.cfg["mean"] == [0.0, 0.0]


def test_names_without_op_are_the_same_weights(tmp_path):
    """Networks that were not traced have none."""
    torch.manual_seed(0)
    net = vgg_state(TINY, 3, 4)
    files = []
    for i, state in enumerate((net, {k.replace(".op.", "."): v for k, v in net.items()})):
        file = checkpoint(tmp_path / f"{i}.pth", state)
        files.append(authors.import_checkpoint(file, "test_ottt_vgg", "x", tmp_path / str(i)).file)
    first, second = map(load_file, files)
    assert first.keys() == second.keys() == timm.create_model("test_ottt_vgg").state_dict().keys()
    assert all(torch.equal(first[k], second[k]) for k in first)


def without(key):
    return lambda net: net.pop(key)


def changed(key, value):
    return lambda net: net.__setitem__(key, value)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without("features.4.op.gain"), r"lacks features\.4\.gain; give the model"),
        (changed("features.99.op.weight", torch.ones(1)), r"it has features\.99\.weight besides"),
        (
            changed("features.4.op.weight", torch.randn(12, 8, 1, 1)),
            r"features\.4\.weight has the shape \[12, 8, 1, 1\], and .* needs \[12, 8, 3, 3\]",
        ),
        # The average pool before their classifier may be 3 x 3.
        (
            changed("classifier.0.op.weight", torch.randn(4, 144)),
            r"classifier\.0\.weight has the shape \[4, 144\], and the model needs \[4, 16\]",
        ),
        (changed("classifier.0.op.bias", torch.randn(5)), r"\[5\], and the model needs \[4\]"),
        (changed("features.0.weight", torch.randn(8, 9)), r"the model needs \[8, 1, 3, 3\]"),
        (changed("features.0.weight", torch.randn(8, 0, 3, 3)), r"the shape \[8, 0, 3, 3\]"),
        (
            changed("features.0.bias", torch.full((8,), torch.nan)),
            r"features\.0\.bias holds values",
        ),
        (changed("features.4.weight", torch.ones(1)), r"holds features\.4\.weight twice"),
        (changed("features.4.op.gain", 1.0), "holds no tensors under the key net"),
    ],
)
def test_a_partial_match_is_refused_by_name(spoil, message, tmp_path):
    net = vgg_state(TINY, 3, 4)
    spoil(net)
    with pytest.raises(InputError, match=message) as refused:
        authors.import_checkpoint(
            checkpoint(tmp_path / "c.pth", net), "test_ottt_vgg", "x", tmp_path / "zoo"
        )
    assert "c.pth" in str(refused.value) and "\n" not in str(refused.value)
    assert not (tmp_path / "zoo").exists()


def test_other_files_and_models_are_refused(tmp_path):
    class Attack:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    net = vgg_state(TINY, 3, 4)
    whole = checkpoint(tmp_path / "whole.pth", net)
    torch.save({"net": Attack()}, tmp_path / "attack.pth")
    torch.save(net, tmp_path / "bare.pth")
    (tmp_path / "cut.pth").write_bytes(whole.read_bytes()[:-100])
    for file, model, tag, message in (
        ("missing.pth", "test_ottt_vgg", "x", r"missing\.pth: cannot be read"),
        ("attack.pth", "test_ottt_vgg", "x", r"attack\.pth is not a checkpoint of tensors"),
        ("cut.pth", "test_ottt_vgg", "x", r"cut\.pth is not a checkpoint of tensors"),
        ("bare.pth", "test_ottt_vgg", "x", "no tensors under the key net"),
        (
            "whole.pth",
            "test_ottt_vggf",
            "x",
            r"lacks conv1\.weight.* and it has features\.0.* besides",
        ),
        ("whole.pth", "test_ottt_nf_resnet", "x", r"lacks conv1\.weight.* and \d+ more"),
        ("whole.pth", "test_ltc_cnn", "x", "model='test_ltc_cnn': give a VGG"),
        ("whole.pth", "test_ottt_vgg.untrained", "x", "without a tag"),
        ("whole.pth", "../x", "x", "unknown model"),
        ("whole.pth", "test_ottt_vgg", "../x", r"tag='\.\./x': give letters"),
        ("whole.pth", "test_ottt_vgg", "/etc/x", "tag='/etc/x'"),
    ):
        with pytest.raises(InputError, match=message):
            authors.import_checkpoint(tmp_path / file, model, tag, tmp_path / "zoo")
    assert not (tmp_path / "executed").exists() and not (tmp_path / "zoo").exists()


def test_a_feedbacks_bias_comes_with_the_weights_and_stays(tmp_path, monkeypatch):
    """Ours has none by itself; what is trained on from theirs keeps it."""
    monkeypatch.setenv("SJ_OTTT_ZOO", str(tmp_path / "zoo"))
    net = vgg_state(TINY, 3, 4, feedback=True)
    file = checkpoint(tmp_path / "c.pth", net)
    authors.import_checkpoint(file, "test_ottt_vggf", "x")
    model = zoo.create("test_ottt_vggf", 4, in_chans=3, pretrained="x")
    assert torch.equal(model.feedback.synapse.bias, net["fb_conv.op.bias"])
    x, target = 2 * torch.randn(2, 3, 16, 16), torch.tensor([0, 1])
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    learning.train_step(model, optimizer, x, target, steps=3)
    assert not torch.equal(model.feedback.synapse.bias, net["fb_conv.op.bias"])
    again = timm.create_model("test_ottt_vggf", num_classes=4)
    assert again.feedback.synapse.bias is None
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.feedback.synapse.bias, model.feedback.synapse.bias)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*feedback"):
        timm.create_model("test_ottt_vgg", num_classes=4).load_state_dict(model.state_dict())


def test_imported_weights_take_other_channels_and_classes(tmp_path, monkeypatch):
    monkeypatch.setenv("SJ_OTTT_ZOO", str(tmp_path / "zoo"))
    file = checkpoint(tmp_path / "c.pth", vgg_state(TINY, 3, 4))
    authors.import_checkpoint(file, "test_ottt_vgg", "x")
    model = zoo.create("test_ottt_vgg", 7, in_chans=2, pretrained="x")
    x = 2 * torch.randn(2, 2, 32, 32)
    assert learning.predict(model, x, steps=2).shape == (2, 7)
