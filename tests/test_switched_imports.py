"""A script that takes SpikingJelly's names from our modules of the same name finds every one.

What is ours takes every call that theirs takes and gives the same numbers; what is not is theirs.
"""

import importlib
import inspect
import sys
from pathlib import Path

import pytest
import torch
from spikingjelly.activation_based import base
from spikingjelly.activation_based import layer as sj_layer
from spikingjelly.activation_based import neuron as sj_neuron
from torch import nn

import sj_ottt
from sj_ottt import InputError, functional, layer, learning, neuron, surrogate
from sj_ottt.learning import FPTT, online_learning, train_step

# Name of a module of ours → the names of SpikingJelly's that are other objects there.
REPLACED = {
    "neuron": {"OTTTLIFNode", "SLTTLIFNode", "lif"},
    "neuron.lif": set(),
    "layer": {
        "AdaptiveAvgPool2d",
        "AvgPool2d",
        "Conv2d",
        "Dropout",
        "Dropout2d",
        "Flatten",
        "Linear",
        "MaxPool2d",
        "OTTTSequential",
        "WSConv2d",
        "WSLinear",
    },
    "functional": set(),
    "surrogate": set(),
    "learning": {"online_learning"},
    "learning.online_learning": {"ottt_online_training"},
}
# Parameters of theirs that ours take otherwise, by the path of the call, and why.
SIGMOID = "None stands for their default, a sigmoid of slope 4, made for each node, not shared"
BY_POSITION = "a layer is called on its input by position; our synapses all name it alike"
NOT_READ = "handed on to a step that reads nothing but the input"
DIFFERENCES = {
    "neuron.OTTTLIFNode": {"surrogate_function": SIGMOID},
    "neuron.SLTTLIFNode": {"surrogate_function": SIGMOID},
    "neuron.OTTTLIFNode.multi_step_forward": {"args": NOT_READ, "kwargs": NOT_READ},
    "neuron.SLTTLIFNode.multi_step_forward": {"args": NOT_READ, "kwargs": NOT_READ},
    "neuron.SLTTLIFNode.single_step_forward": {"args": NOT_READ, "kwargs": NOT_READ},
    "layer.Linear.forward": {"input": BY_POSITION},
}
OURS = [
    f"{module}.{name}"
    for module, names in REPLACED.items()
    for name in sorted(names)
    if name not in ("lif", "online_learning")  # modules
]


def modules(name):
    return [
        importlib.import_module(f"{package}.{name}")
        for package in ("sj_ottt", "spikingjelly.activation_based")
    ]


def both(path):
    """Return our object and theirs of a path such as "layer.Conv2d"."""
    module, name = path.rsplit(".", 1)
    return [getattr(m, name) for m in modules(module)]


def public(names):
    return {name for name in names if not name.startswith("_")}


@pytest.mark.parametrize("name", REPLACED)
def test_every_public_name_is_there_and_theirs_unless_replaced(name):
    ours, theirs = modules(name)
    names = public(dir(theirs))
    exported = set(getattr(theirs, "__all__", names))
    assert names <= set(dir(ours)) and exported <= set(ours.__all__) <= set(dir(ours))
    replaced = {n for n in names if getattr(ours, n) is not getattr(theirs, n)}
    assert replaced == REPLACED[name]
    starred = {}
    exec(f"from sj_ottt.{name} import *", starred)
    assert exported <= starred.keys()


def lost(ours, theirs):
    """Return the parameters by which a call of theirs would not be one of ours."""
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    mine, others = ([*inspect.signature(f).parameters.values()] for f in (ours, theirs))
    if {p.kind for p in others if p.name != "self"} == set(variable):
        return set()  # it only hands on what it is given
    found = set()
    for i, p in enumerate(others):
        same = i < len(mine) and mine[i].kind == p.kind and mine[i].default == p.default
        if not same or (mine[i].name != p.name and p.kind not in variable):
            found.add(p.name)
    new = (p for p in mine[len(others) :] if p.kind not in variable)
    return found | {p.name for p in new if p.default is p.empty}


def test_lost_calls_are_found():
    """What the next test asks has answers other than none."""

    def theirs(a, b=1): ...

    def renamed(a, c=1): ...

    def shorter(a): ...

    def swapped(b, a=1): ...

    def stricter(a, b=1, *, c): ...

    def changed(a, b=2): ...

    def keyword(a, *, b=1): ...

    def more(a, b=1, c=2): ...

    for ours in (renamed, shorter, swapped, stricter, changed, keyword):
        assert lost(ours, theirs)
    assert not lost(more, theirs)


@pytest.mark.parametrize("path", OURS)
def test_what_is_ours_takes_every_call_that_theirs_takes(path):
    ours, theirs = both(path)
    found = {path: lost(ours, theirs)}
    if inspect.isclass(theirs):
        assert public(dir(theirs)) <= public(dir(ours))
        for name, method in inspect.getmembers(theirs, inspect.isfunction):
            if not name.startswith("_"):
                found[f"{path}.{name}"] = lost(getattr(ours, name), method)
    listed = {key: set(DIFFERENCES.get(key, ())) for key in found}
    assert found == listed


def test_every_listed_difference_is_of_something_compared():
    assert all(any(key.startswith(path) for path in OURS) for key in DIFFERENCES)


@pytest.mark.parametrize("name", ["OTTTLIFNode", "SLTTLIFNode"])
def test_the_default_surrogate_is_theirs(name):
    ours, theirs = (cls().surrogate_function for cls in both(f"neuron.{name}"))
    assert type(ours) is type(theirs) and ours.alpha == theirs.alpha == 4


@pytest.mark.parametrize(
    ("module", "name", "meant"),
    [
        (layer, "Conv2D", "Conv2d"),  # ours
        (layer, "batchnorm2d", "BatchNorm2d"),  # theirs
        (neuron, "OTTLIFNode", "OTTTLIFNode"),
        (functional, "reset_nett", "reset_net"),
        (surrogate, "MultiGausian", "MultiGaussian"),
        (learning, "trainstep", "train_step"),
        (online_learning, "fptt_training", "fptt_online_training"),
    ],
)
def test_a_misspelt_name_is_refused_with_a_suggestion(module, name, meant, capsys):
    message = f"{module.__name__} has no {name}; did you mean {meant}?"
    assert not hasattr(module, name) and getattr(module, name, 3) == 3
    with pytest.raises(AttributeError) as attribute:
        getattr(module, name)
    with pytest.raises(ImportError) as imported:
        exec(f"from {module.__name__} import {name}")
    for error in (attribute.value, imported.value):
        assert isinstance(error, InputError) and str(error) == message
        # What the interpreter prints at the end of a script; its own suggestion stays away.
        sys.__excepthook__(type(error), error, error.__traceback__)
        printed = capsys.readouterr().err
        assert printed.endswith(f": {message}\n")


def test_a_name_like_no_other_is_refused_without_a_suggestion():
    with pytest.raises(AttributeError, match=r"^sj_ottt\.layer has no qqqqq$"):
        _ = layer.qqqqq


@pytest.mark.parametrize("name", REPLACED)
def test_private_names_never_come_through(name):
    ours, theirs = modules(name)
    theirs._private_for_this_test = 1
    try:
        assert not hasattr(ours, "_private_for_this_test")
        assert "_private_for_this_test" not in dir(ours)
    finally:
        del theirs._private_for_this_test


def test_submodules_of_ours_are_found_by_import():
    from sj_ottt.layer import feedback
    from sj_ottt.learning import rules

    assert feedback.__name__ == "sj_ottt.layer.feedback"
    assert rules.__name__ == "sj_ottt.learning.rules"
    assert sj_ottt.learning.online_learning is online_learning


@pytest.mark.parametrize("module", [layer, neuron, functional, surrogate, learning])
def test_the_path_of_a_module_is_its_own(module):
    """A borrowed __path__ would make Python look for our submodules among theirs."""
    own = [str(Path(module.__file__).parent)] if Path(module.__file__).stem == "__init__" else []
    assert list(getattr(module, "__path__", [])) == own


# What SpikingJelly's own tests ask of the names that are ours.


@pytest.mark.parametrize("name", ["OTTTLIFNode", "SLTTLIFNode"])
def test_a_node_is_reset_and_records_its_potential_as_theirs(name):
    torch.manual_seed(0)
    nodes = [cls(store_v_seq=True) for cls in both(f"neuron.{name}")]
    x_seq = 2 * torch.rand(4, 3, 5)
    for x in x_seq:
        results = [node(x) for node in nodes]
        if name == "OTTTLIFNode":
            for ours, theirs in zip(*results, strict=True):
                torch.testing.assert_close(ours, theirs)
        else:
            torch.testing.assert_close(*results)
    assert nodes[1].v_seq.unique().numel() > 4
    torch.testing.assert_close(nodes[0].v_seq, nodes[1].v_seq)
    for node in nodes:
        node.reset()
        assert node.v == 0 and node.v_seq is None
    if name == "OTTTLIFNode":
        assert nodes[0].trace is nodes[1].trace is None


@pytest.mark.parametrize("name", ["OTTTLIFNode", "SLTTLIFNode"])
def test_a_node_becomes_a_pure_function_as_theirs(name):
    x = torch.tensor([0.5, 3.0])
    counts = []
    for node in (cls() for cls in both(f"neuron.{name}")):
        before = tuple(node._memories.values())
        outputs, states = base.to_functional_forward(node)((x,), before)
        assert tuple(node._memories.values()) == before and len(states) == len(before)
        counts.append(len(outputs))
        assert outputs[0].tolist() == [0, 1]
    assert counts[0] == counts[1]


def test_a_subclass_of_a_node_after_a_node_is_called_once_on_the_spike():
    class Own(neuron.OTTTLIFNode):
        """Of a user."""

    torch.manual_seed(0)
    chain = layer.OTTTSequential(nn.Linear(6, 8), neuron.OTTTLIFNode(), Own())
    alone = [neuron.OTTTLIFNode(), neuron.OTTTLIFNode()]
    for x in 4 * torch.rand(4, 3, 6):
        spike, trace = chain(x)
        expected = alone[1](alone[0](chain[0](x))[0])
        torch.testing.assert_close(spike, expected[0])
        torch.testing.assert_close(trace, expected[1])
        torch.testing.assert_close(chain[2].v, alone[1].v)
    assert 0 < spike.mean() < 1


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_local_plasticity_works_on_our_layers(step_mode):
    updates = []
    for source in modules("layer"):
        torch.manual_seed(0)
        net = nn.Sequential(
            source.Conv2d(1, 4, 3, bias=False),
            neuron.IFNode(),
            source.Flatten(),
            source.Linear(64, 5, bias=False),
            neuron.LIFNode(),
        )
        functional.set_step_mode(net, step_mode)
        learners = [
            learning.STDPLearner(step_mode, net[i], net[i + 1], tau_pre=2.0, tau_post=2.0)
            for i in (0, 3)
        ]
        x_seq = (torch.rand(4, 2, 1, 6, 6) > 0.3).float()
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.abs_()
        for x in x_seq if step_mode == "s" else [x_seq]:
            net(x)
        updates.append([learner.step(on_grad=False) for learner in learners])
    for ours, theirs in zip(*updates, strict=True):
        assert theirs.abs().sum() > 0
        torch.testing.assert_close(ours, theirs)


def test_spikingjellys_own_example_runs_after_the_switch():
    """Its chain ends in an ordinary LIF node and is reset by `functional.reset_net`."""
    torch.manual_seed(0)
    net = layer.OTTTSequential(
        nn.Linear(8, 4), neuron.OTTTLIFNode(), nn.Linear(4, 2), neuron.LIFNode()
    )
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(2):
        loss, y = learning.ottt_online_training(
            net, optimizer, torch.rand(2, 4, 8), torch.rand(2, 4, 2), nn.functional.mse_loss, True
        )
        functional.reset_net(net)
    assert loss.isfinite() and y.shape == (2, 4, 2)


# FPTT: SpikingJelly's functions answer to its names, and `learning.FPTT` is the paper's.


def test_fptt_by_spikingjellys_names_changes_no_number():
    results = []
    for nodes, layers in zip(modules("neuron"), modules("layer"), strict=True):
        torch.manual_seed(0)
        model = layers.OTTTSequential(
            nn.Linear(8, 16), nodes.OTTTLIFNode(), nn.Linear(16, 2), nodes.LIFNode()
        )
        nn.init.normal_(model[0].weight)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        start = [p.detach().clone() for p in model.parameters()]
        averages = learning.fptt_online_training_init_w_ra(optimizer)
        for _ in range(2):
            learning.fptt_online_training(
                model=model,
                optimizer=optimizer,
                x_seq=torch.rand(5, 3, 8),
                target_seq=torch.rand(5, 3, 2),
                f_loss_t=nn.functional.mse_loss,
                alpha=0.1,
                w_ra=averages,
            )
            functional.reset_net(model)
        results.append([*model.parameters(), *averages])
        assert not any(map(torch.equal, start, model.parameters()))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("ours", [False, True])
def test_fptt_pulls_by_the_mean_of_squares_in_theirs_and_by_the_sum_in_the_papers(ours):
    """The loss (w·x − y)²/2 over three steps, in float64, by the equations."""
    alpha, rate, steps = 0.5, 0.1, 3
    x, y = torch.tensor([[1.0, -2.0, 0.5]]).double(), torch.tensor([0.7]).double()
    model = nn.Linear(3, 1, bias=False).double()
    nn.init.ones_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), rate)

    w = average = torch.ones(1, 3).double()
    dual = torch.zeros(1, 3).double()
    averages = []
    for _ in range(steps):
        strength = alpha if ours else alpha / w.numel()
        w = w - rate * ((w @ x.T - y) * x + strength * (w - average - dual / (2 * alpha)))
        dual = (w @ x.T - y) * x
        average = (w + average) / 2 - dual / (2 * alpha)
        averages.append(average)

    def loss(output, target):
        return 0.5 * (output.flatten() - target).square().sum()

    if ours:
        fptt = FPTT(optimizer, alpha, clip=None, form="grad", weight=lambda p, n: 1.0)
        train_step(model, fptt, x.expand(steps, 1, 3), y, loss_fn=loss)
        found = fptt.state_dict()["average"][0]
    else:
        running = learning.fptt_online_training_init_w_ra(optimizer)
        learning.fptt_online_training(
            model, optimizer, x.expand(steps, 1, 3), y.expand(steps, 1), loss, alpha, running
        )
        (found,) = running
        averages.pop()  # theirs leaves out the one after the last step
    torch.testing.assert_close(model.weight.detach(), w, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found, averages[-1], rtol=1e-12, atol=1e-12)


def test_too_short_averages_of_fptt_are_refused_as_by_theirs():
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ones = torch.ones(1, 1, 2)
    with pytest.raises(IndexError):
        online_learning.fptt_online_training(
            model, optimizer, ones, ones[..., :1], nn.functional.mse_loss, 0.1, w_ra=[]
        )


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        *(
            (ours, theirs)
            for name, theirs in vars(sj_layer).items()
            if isinstance(theirs, type) and (ours := getattr(layer, name)) is not theirs
        ),
        (neuron.OTTTLIFNode, sj_neuron.OTTTLIFNode),
        (neuron.SLTTLIFNode, sj_neuron.SLTTLIFNode),
    ],
)
def test_what_stands_in_for_a_class_of_theirs_is_one_of_theirs(ours, theirs):
    """Code of theirs, or of a user, that asks `isinstance` of their class finds ours too."""
    assert issubclass(ours, theirs)
