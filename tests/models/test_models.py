"""timm's expectations of a model, run over every name that this package registers."""

import inspect
import pickle
from functools import partial

import pytest
import timm
import torch
from spikingjelly.activation_based import functional as sj_functional
from timm.models import get_pretrained_cfg
from torch import nn
from torch.nn import functional as F

from sj_ottt import InputError, learning, set_rule
from sj_ottt.neuron import LTCNode, OTTTLIFNode

ALL = [n for m in ("ottt_vgg", "ottt_nf_resnet", "ltc_nets") for n in timm.list_models(module=m)]
NAMES = [n for n in ALL if not n.endswith("ltc_rnn")]  # those of images
STEPS = 6  # the spikes need a few steps to reach the last layers
BIG = {"ottt_nf_resnet50", "ottt_nf_resnet101", "ottt_vgg11_ws", "ottt_vgg11f_ws"}
BIG |= {"ltc_cnn", "ltc_cnn_dvs", "ottt_nf_resnet34d"}


def small_input(name, batch=2):
    """Loud blobs: what is flat or fine-grained dies in zero-mean filters and in the pools."""
    torch.manual_seed(0)
    size = 32 if "vgg" in name or name.endswith("ltc_cnn") else 64
    blobs = 4 * torch.randn(batch, get_pretrained_cfg(name).input_size[0], 8, 8)
    return F.interpolate(blobs, size=(size, size), mode="bilinear")


def wake(model):
    """Give the zero-initialised parts of NF-ResNet values, or all outputs are equal."""
    for key, p in model.named_parameters():
        if key.endswith("skipinit") or key == "fc.weight":
            nn.init.normal_(p)
    return model


def set_mode(model, mode):
    sj_functional.set_step_mode(model, mode)
    return model


def test_all_names_are_registered():
    assert set(ALL) == {
        "ottt_vgg11_ws",
        "ottt_vgg11f_ws",
        "ottt_vgg5_ws",
        "ottt_vgg5f_ws",
        "ottt_nf_resnet18",
        "ottt_nf_resnet34",
        "ottt_nf_resnet50",
        "ottt_nf_resnet101",
        "ottt_nf_resnet18d",
        "ottt_nf_resnet34d",
        "test_ottt_vgg",
        "test_ottt_vggf",
        "test_ottt_nf_resnet",
        "test_ottt_nf_resnetd",
        "ltc_rnn",
        "ltc_cnn",
        "ltc_cnn_small",
        "ltc_cnn_dvs",
        "test_ltc_rnn",
        "test_ltc_cnn",
    }
    # A file called like one of timm's would put our models into timm's own module listing.
    for name in NAMES:
        assert name not in timm.list_models(module="nfnet") + timm.list_models(module="vgg")


@pytest.mark.parametrize(
    ("name", "millions", "kwargs"),
    [
        ("ottt_vgg11_ws", 9.2, {"num_classes": 10}),
        ("ottt_vgg11_ws", 9.3, {"num_classes": 100}),
        ("ottt_vgg5_ws", 0.3, {}),
        ("ottt_nf_resnet34", 21.8, {"num_classes": 1000}),
        ("ltc_cnn_dvs", 14.1, {}),
        ("ltc_rnn", 0.33, {}),
    ],
)
def test_parameter_counts_of_the_paper(name, millions, kwargs):
    model = timm.create_model(name, **kwargs)
    digits = len(str(millions).partition(".")[2])
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, digits) == millions


@pytest.mark.parametrize(
    ("name", "convs", "dense", "b0"),
    [
        ("ltc_cnn", [(32, 3), (128, 3), (256, 3), (512, 3)], [512, 512], 0.1),
        ("ltc_cnn_dvs", [(64, 7), (128, 7), (128, 3), (256, 3), (256, 3), (512, 3)], [512], 0.5),
        ("ltc_cnn_small", [(16, 3), (32, 3), (64, 3)], [64], 0.1),
    ],
)
def test_ltc_networks_are_those_of_the_paper(name, convs, dense, b0):
    """Channels and kernels of the convolutions, dense neurons, lowest thresholds."""
    model = timm.create_model(name)
    stages = [model.get_submodule(f"layer{i + 1}") for i in range(len(convs))]
    assert [(s[0].out_channels, s[0].kernel_size[0]) for s in stages] == convs
    assert [s[-1].b0 for s in stages] == [b0] * len(convs)
    nodes = [m for m in model.dense if isinstance(m, LTCNode)]
    assert [node.update.out_features for node in nodes] == dense
    assert [node.b0 for node in nodes] == [0.1] * len(dense)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_forward_and_a_gradient_for_every_parameter(name):
    model = wake(timm.create_model(name, num_classes=7))
    x = small_input(name)
    with torch.no_grad():
        evaluated = sum(model.eval()(x) for _ in range(STEPS))
    learning.reset_state(model)
    trained = sum(model.train()(x) for _ in range(STEPS))
    for logits in (evaluated, trained):
        assert logits.shape == (2, 7) and logits.isfinite().all() and logits.std() > 0
    trained.square().mean().backward()
    for key, p in model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.norm() > 0, key


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in NAMES if n not in BIG])
def test_step_mode_m_equals_the_steps_one_by_one(name):
    torch.manual_seed(0)
    model = wake(timm.create_model(name, num_classes=5)).eval()
    x_seq = torch.stack([small_input(name) for _ in range(3)])
    with torch.no_grad():
        torch.manual_seed(1)
        expected = torch.stack([model(x) for x in x_seq])
        learning.reset_state(model)
        torch.manual_seed(1)
        out = set_mode(model, "m")(x_seq)
    assert out.shape == (3, 2, 5) and expected.std() > 0
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    if getattr(model, "feedback", None) is None:
        assert model.train()(x_seq).requires_grad
        return
    with pytest.raises(InputError, match='a feedback cannot run in step_mode="m"'):
        model.train()(x_seq)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_default_cfg_is_true(name):
    model = timm.create_model(name).eval()
    cfg = model.default_cfg
    assert set(cfg["classifier"].split(".")) <= {n for n, _ in model.named_modules()}
    first_conv = model.get_submodule(cfg["first_conv"])
    assert isinstance(first_conv, nn.Conv2d) and first_conv.in_channels == cfg["input_size"][0]
    state = model.state_dict()
    assert cfg["classifier"] + ".weight" in state and cfg["first_conv"] + ".weight" in state
    assert model.get_classifier() is model.get_submodule(cfg["classifier"])
    assert model.get_classifier().out_features == cfg["num_classes"] == model.num_classes
    assert model.num_features == model.head_hidden_size == model.get_classifier().in_features
    x = torch.rand(1, *cfg["input_size"])
    with torch.no_grad():
        features = model.forward_features(x)
        assert features.shape == (1, model.num_features, *cfg["pool_size"])
        assert model.forward_head(features).shape == (1, cfg["num_classes"])
        pre = model.forward_head(features, pre_logits=True)
        assert pre.shape == (1, model.head_hidden_size)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in NAMES if n not in BIG])
def test_classifier_and_pooling_can_be_removed(name):
    x = small_input(name, 1)
    with torch.no_grad():
        for build in (
            lambda n: timm.create_model(name, num_classes=0, global_pool="" if n else "avg"),
            lambda n: _reset(timm.create_model(name), 0, *([""] if n else [])),
        ):
            unpooled = build(True).eval()(x)
            assert unpooled.dim() == 4
            pooled = build(False).eval()(x)
            torch.testing.assert_close(pooled.shape, torch.Size((1, unpooled.shape[1])))
    model = _reset(timm.create_model(name), 3)
    assert model.num_classes == 3 and model(x).shape == (1, 3)
    with pytest.raises(InputError, match="global_pool"):
        timm.create_model(name, global_pool="max")
    with pytest.raises(InputError, match="num_classes=0"):
        timm.create_model(name, global_pool="")


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith("test_")])
def test_device_dtype_and_mode_reach_a_new_head(name):
    model = timm.create_model(name, device="meta", dtype=torch.bfloat16).eval()
    model.reset_classifier(0, "")
    model.reset_classifier(2)
    for key, p in model.named_parameters():
        assert p.is_meta and p.dtype == torch.bfloat16, key
    assert not any(m.training for m in model.modules())


@pytest.mark.parametrize("readout", ["traced", "membrane"])
@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith("test_")])
def test_a_new_head_runs_all_steps_where_the_model_does(name, readout):
    if "ltc" in name and readout == "membrane":
        pytest.skip("it has a readout of its own")
    model = set_mode(timm.create_model(name, readout=readout), "m")
    x_seq = torch.stack([small_input(name) for _ in range(3)])
    model.reset_classifier(0)
    model.eval()(x_seq)
    assert model(x_seq).shape == (3, 2, model.num_features)
    model.reset_classifier(0, "")
    model.reset_classifier(5)
    learning.reset_state(model)
    nn.init.normal_(model.fc.weight)
    with torch.no_grad():
        out = model(x_seq)
        learning.reset_state(model)
        set_mode(model, "s")
        expected = torch.stack([model(x) for x in x_seq])
    assert out.shape == (3, 2, 5) and expected.std() > 0
    if "ltc" not in name:  # which start at random
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "mode"),
    [((2, 3, 32), "s"), ((2, 5, 32, 32), "s"), ((4, 2, 3, 32, 32), "s"), ((2, 3, 32, 32), "m")],
)
def test_a_wrong_input_shape_is_named(shape, mode):
    model = set_mode(timm.create_model("test_ottt_vgg").eval(), mode)
    with pytest.raises(InputError, match=r"input of shape .* takes \[N, 3, H, W\]"):
        model(torch.rand(shape))


def test_frames_that_the_pools_leave_nothing_of_are_refused():
    model = timm.create_model("test_ottt_vgg").eval()
    assert model(torch.rand(1, 3, 4, 9)).shape == (1, 10)
    with pytest.raises(InputError, match=r"frames of 9 x 3 pixels: .* below 4; give larger"):
        model(torch.rand(1, 3, 9, 3))


def _reset(model, *args):
    model.reset_classifier(*args)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in NAMES if n not in BIG])
def test_features_only(name):
    x = small_input(name)
    model = timm.create_model(name, features_only=True)
    for training in (True, False):
        model.train(training)
        learning.reset_state(model)
        maps = model(x)
        # In training, spikes come with their trace.
        maps = [f[0] if isinstance(f, list) else f for f in maps]
        assert all(f.std() > 0 for f in maps)
        assert len(maps) == len(model.feature_info)
        for f, chs, red in zip(
            maps, model.feature_info.channels(), model.feature_info.reduction(), strict=True
        ):
            assert f.shape == (2, chs, -(-x.shape[2] // red), -(-x.shape[3] // red))
    last = timm.create_model(name, features_only=True, out_indices=(-2,))
    assert (
        len(last(x)) == 1 and last.feature_info.channels() == model.feature_info.channels()[-2:-1]
    )
    whole = sum(p.numel() for p in timm.create_model(name).parameters())
    assert sum(p.numel() for p in last.parameters()) < whole


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith("test_")])
def test_forward_intermediates(name):
    model = wake(timm.create_model(name)).eval()
    x = small_input(name)
    with torch.no_grad():
        torch.manual_seed(1)
        final, maps = model.forward_intermediates(x)
        learning.reset_state(model)
        torch.manual_seed(1)
        torch.testing.assert_close(final, model.forward_features(x))
        torch.testing.assert_close(maps[-1], final)
        learning.reset_state(model)
        torch.manual_seed(1)
        only = model.forward_intermediates(x, indices=1, intermediates_only=True, stop_early=True)
    torch.testing.assert_close(only, maps[-1:])
    with pytest.raises(InputError, match="output_fmt"):
        model.forward_intermediates(x, output_fmt="NLC")


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith("test_")])
def test_state_dict_pickle_and_groups(name):
    model = wake(timm.create_model(name, in_chans=2))
    twin = timm.create_model(name, in_chans=2)
    twin.load_state_dict(model.state_dict())
    x = 2 * torch.randn(2, 2, 32, 32)
    outputs = []
    for copied in (pickle.loads(pickle.dumps(model)), twin):
        torch.manual_seed(1)
        outputs.append(copied(x))
    torch.testing.assert_close(*outputs)
    groups = model.group_matcher()
    assert set(groups) == {"stem", "blocks"}
    with pytest.raises(InputError, match="checkpointing"):
        model.set_grad_checkpointing()


def test_residual_blocks_follow_the_expected_variance():
    """β² starts at 1, grows by α² = 0.04 a block, and starts again behind a change of shape."""
    model = timm.create_model("ottt_nf_resnet34")
    blocks = [block for i in range(1, 5) for block in model.get_submodule(f"layer{i}")]
    variance, expected = 1.0, []
    for stage, depth in enumerate((3, 4, 6, 3)):
        for block in range(depth):
            expected.append(variance**0.5)
            variance = 1.04 if stage > 0 and block == 0 else variance + 0.04
    assert [block.beta for block in blocks] == pytest.approx(expected)
    changes = [i for i, block in enumerate(blocks) if block.downsample is not None]
    assert changes == [3, 7, 13]


def test_residual_block_formula():
    """out = α · skipinit · F(z) + skip, with z = 2.74 · spikes of x / β."""
    torch.manual_seed(0)
    model = timm.create_model("ottt_nf_resnet18").eval()
    plain, changing = model.layer1[1], model.layer2[0]
    assert plain.beta == pytest.approx(1.04**0.5)
    for block in (plain, changing):
        nn.init.constant_(block.skipinit, 1.5)
        x = 2 * torch.randn(2, block.branch[0].in_channels, 8, 8)
        z = 2.74 * (x / block.beta >= 1).float()
        skip = x if block is plain else block.downsample(z)
        inner = 2.74 * (block.branch[0](z) >= 1).float()
        expected = 0.2 * 1.5 * block.branch[2](inner) + skip
        torch.testing.assert_close(block(x), expected)
        assert inner.mean() > 0


def test_neuron_factory_and_dropout():
    model = timm.create_model(
        "test_ottt_vgg",
        neuron=partial(OTTTLIFNode, tau=4.0),
        drop_rate=0.5,
        spike_drop_rate=0.1,
    )
    nodes = [m for m in model.modules() if isinstance(m, OTTTLIFNode)]
    assert len(nodes) == 3 and all(node.tau == 4.0 for node in nodes)
    x, y = torch.rand(2, 3, 16, 16), torch.tensor([0, 1])
    learning.train_step(model, torch.optim.SGD(model.parameters(), 0.1), x, y, steps=3)


def test_names_of_parameters_do_not_depend_on_dropout():
    """Also states load that were saved when each dropout behind a neuron had a number."""
    torch.manual_seed(0)
    plain = timm.create_model("ottt_vgg11f_ws", in_chans=2)
    dropped = timm.create_model("ottt_vgg11f_ws", in_chans=2, drop_rate=0.5, spike_drop_rate=0.1)
    assert plain.state_dict().keys() == dropped.state_dict().keys()
    old = {}
    for name, value in plain.state_dict().items():
        stage, number, *rest = name.split(".")
        if stage.startswith("layer") and number in ("3", "4"):  # a stage's second convolution
            name = ".".join([stage, str(int(number) + 1), *rest])
        old[name] = value
    assert "layer1.4.weight" in old and "layer4.5.gain" in old
    model = nn.ModuleDict({"net": dropped})
    model.load_state_dict({f"net.{name}": value for name, value in old.items()})
    assert all(map(torch.equal, dropped.parameters(), plain.parameters()))


def test_entry_points_are_documented():
    for name in ALL:
        assert inspect.getdoc(timm.models.model_entrypoint(name)).startswith("Build ")


def test_ltc_rnn():
    """One step is [N, F]; the state goes from step to step; all steps in one call are the same."""
    model = timm.create_model("test_ltc_rnn", in_chans=3, num_classes=4)
    x_seq = 3 * torch.randn(5, 2, 3)
    outputs = []
    for mode in ("s", "m"):
        torch.manual_seed(0)
        learning.reset_state(model)
        set_mode(model, mode)
        outputs.append(torch.stack([model(x) for x in x_seq]) if mode == "s" else model(x_seq))
    assert outputs[0].shape == (5, 2, 4)
    torch.testing.assert_close(*outputs)
    outputs[1][-1].square().sum().backward()
    for key, p in model.named_parameters():
        assert p.grad is not None and p.grad.norm() > 0, key
    set_mode(model, "s")
    assert model.get_classifier() is model.fc and model.default_cfg["classifier"] == "fc"
    learning.reset_state(model)
    assert model.forward_head(model.forward_features(x_seq[0]), pre_logits=True).shape == (2, 8)
    model.reset_classifier(0)
    assert model(x_seq[0]).shape == (2, 8)
    model.reset_classifier(6)
    assert model.num_classes == 6 and model(x_seq[0]).shape == (2, 6)
    set_mode(model, "m").reset_classifier(3)
    learning.reset_state(model)
    torch.manual_seed(0)
    out = model(x_seq)
    learning.reset_state(set_mode(model, "s"))
    torch.manual_seed(0)
    torch.testing.assert_close(out, torch.stack([model(x) for x in x_seq]))
    assert out.shape == (5, 2, 3)
    with pytest.raises(InputError, match=r"takes \[N, 3\]"):
        model(torch.rand(2, 3, 8, 8))
    meta = timm.create_model("test_ltc_rnn", device="meta", dtype=torch.bfloat16)
    meta.reset_classifier(2)
    assert all(p.is_meta and p.dtype == torch.bfloat16 for p in meta.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["test_ltc_rnn", "test_ltc_cnn"])
def test_ltc_models_learn_by_fptt_and_bptt(name):
    """Four inputs of noise are told apart within a few updates; only the last output counts."""
    shape = (3,) if name.endswith("rnn") else (1, 8, 8)
    for rule in ("fptt", "bptt"):
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=4, in_chans=shape[0])
        x_seq, target = 2 * torch.randn(6, 4, *shape), torch.arange(4)
        trainer = torch.optim.Adam(model.parameters(), 0.02)
        if rule == "fptt":
            trainer = learning.FPTT(trainer, 0.1, parts=3)
        losses = [learning.train_step(model, trainer, x_seq, target)[0].item() for _ in range(30)]
        assert losses[-1] < 0.75 * losses[0], (rule, losses)
        with pytest.raises(InputError, match="no presynaptic trace"):
            set_rule(model, "ottt")


def test_ltc_cnn_keeps_its_dense_layer_with_a_new_head():
    """A variant's own input size reaches its grid as it is: pooling changes nothing there."""
    model = timm.create_model("test_ltc_cnn")
    before = model.dense[0].weight
    model.reset_classifier(3)
    assert model.dense[0].weight is before and model.fc.out_features == 3
    for name in ("ltc_cnn", "ltc_cnn_small", "ltc_cnn_dvs"):
        cfg = get_pretrained_cfg(name)
        assert timm.create_model(name).global_pool.output_size == cfg.pool_size[0]
