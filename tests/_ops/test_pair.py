"""What a neuron hands on: sums, linear functions, and the refusal of all that loses the trace."""

import copy
import operator

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import tree_map

from sj_ottt import InputError, layer, set_rule
from sj_ottt._ops.trace import Trace
from sj_ottt.layer import Pair
from sj_ottt.learning import train_step
from sj_ottt.neuron import OTTTLIFNode


def handed_on(*shape: int, trace_dtype: str = "packed") -> Pair:
    """What a neuron hands on in its second step, where the trace is not the spike."""
    node = OTTTLIFNode(trace_dtype=trace_dtype)
    node(2 * torch.rand(shape))
    pair = node((2 * torch.rand(shape)).requires_grad_())
    assert not torch.equal(pair.spike, pair.values) and pair.spike.any()
    return pair


@pytest.fixture
def pair() -> Pair:
    torch.manual_seed(0)
    return handed_on(2, 3, 4, 4)


def is_sum(found: object, *terms: Pair) -> bool:
    """Whether spike and trace are the sums of those of the terms, and only the spike learns."""
    assert isinstance(found, Pair) and found.spike.requires_grad
    assert not found.values.requires_grad
    spike, trace = (sum(part) for part in zip(*terms, strict=True))
    return torch.equal(found.spike, spike) and torch.equal(found.values, trace)


SUMS = {
    "a + b": lambda a, b: a + b,
    "a += b": operator.iadd,
    "sum()": lambda a, b: sum([a, b]),
    "with a plain list": lambda a, b: a + list(b),
    "with a plain tuple": lambda a, b: tuple(a) + b,
    "torch.add": torch.add,
    "torch.add by name": lambda a, b: torch.add(input=a, other=b),
    "a.add(b)": lambda a, b: a.add(b),
}


@pytest.mark.parametrize("name", SUMS)
def test_a_sum_of_pairs_is_the_pair_of_the_sums(pair, name):
    other = handed_on(2, 3, 4, 4, trace_dtype="float32")
    before = [part.clone() for part in pair]
    assert is_sum(SUMS[name](pair, other), pair, other)
    assert all(map(torch.equal, pair, before))


def test_a_scaled_sum_scales_the_trace_too(pair):
    other = handed_on(2, 3, 4, 4)
    assert is_sum(torch.add(pair, other, alpha=2), pair, 2 * other)


JOINS = {
    "pair + current": lambda x, c: x + c,
    "current + pair": lambda x, c: c + x,
    "torch.add": lambda x, c: torch.add(c, x),
    "torch.add by name": lambda x, c: torch.add(x, other=c),
    "current - pair": lambda x, c: c - x,
    "pair - current": lambda x, c: x - c,
    "stack": lambda x, c: torch.stack([x, c]),
    "where": lambda x, c: torch.where(torch.arange(4) > 1, x, c),
}


@pytest.mark.parametrize("name", JOINS)
def test_a_current_that_is_added_or_joined_is_its_own_trace(pair, name):
    current, join = torch.randn(2, 3, 4, 4), JOINS[name]
    found = join(pair, current)
    assert isinstance(found, Pair) and not found.values.requires_grad
    assert torch.equal(found.spike, join(pair.spike, current))
    assert torch.equal(found.values, join(pair.values, current))


def test_a_statement_adds_a_pair_to_a_current(pair):
    current = torch.randn(2, 3, 4, 4)
    for statement in ("c += x", "c -= x"):
        names = {"c": current.clone(), "x": pair}
        exec(statement, names)
        plain = {"c": current.clone(), "x": pair.spike}
        exec(statement, plain)
        traced = {"c": current.clone(), "x": pair.values}
        exec(statement, traced)
        assert isinstance(names["c"], Pair)
        assert torch.equal(names["c"].spike, plain["c"])
        assert torch.equal(names["c"].values, traced["c"])
    with pytest.raises(InputError, match=r"add_\(\) .* changes a tensor in place\): use add and"):
        current.add_(pair)  # whose result need not be used


FACTORS = {
    "2.5 * x": lambda x: 2.5 * x,
    "x * 2.5": lambda x: x * 2.5,
    "x / 2": lambda x: x / 2,
    "x.div(2)": lambda x: x.div(2),
    "-x": lambda x: -x,
    "a constant": lambda x: x * torch.arange(4.0),
    "by a constant": lambda x: torch.arange(1.0, 5.0) * x / torch.arange(1.0, 5.0),
    "a constant matrix": lambda x: x @ torch.arange(8.0).view(4, 2),
    "einsum": lambda x: torch.einsum("nchw,wk->nchk", x, torch.arange(8.0).view(4, 2)),
}


@pytest.mark.parametrize("name", FACTORS)
def test_a_constant_factor_scales_spike_and_trace(pair, name):
    found = FACTORS[name](pair)
    assert isinstance(found, Pair)
    torch.testing.assert_close(found.spike, FACTORS[name](pair.spike))
    torch.testing.assert_close(found.values, FACTORS[name](pair.values))


WEIGHTS = {
    "w * x": lambda x, w: w * x,
    "x * (0.2 * w)": lambda x, w: x * (0.2 * w),
    "x / w": lambda x, w: x / w,
    "x @ w": lambda x, w: x @ w,
    "x @ w.t()": lambda x, w: x @ w.t(),
    "torch.matmul": torch.matmul,
    "einsum": lambda x, w: torch.einsum("nchw,wk->nchk", x, w),
    "F.linear": F.linear,
    "F.conv2d": lambda x, w: F.conv2d(x, w.view(1, 1, 4, 4).expand(2, 3, 4, 4), padding="same"),
    "F.conv2d in groups": lambda x, w: F.conv2d(x, w.view(1, 1, 4, 4).repeat(3, 1, 1, 1), groups=3),
    "F.conv_transpose2d": lambda x, w: F.conv_transpose2d(
        x, w.view(1, 1, 4, 4).repeat(3, 2, 1, 1), stride=2, output_padding=1
    ),
    "one image without a batch": lambda x, w: F.conv2d(
        x.select(0, 1), w.view(1, 1, 4, 4).expand(2, 3, 4, 4)
    ),
    "F.conv1d": lambda x, w: F.conv1d(x.flatten(2), w.view(1, 4, 4).repeat(1, 1, 1)[:, :3]),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_product_with_a_weight_takes_the_trace(name):
    torch.manual_seed(0)
    pair = handed_on(2, 3, 4, 4)
    pair = Pair(pair.spike.detach().double().requires_grad_(), Trace(pair.values.double()))
    w = torch.rand(4, 4).double().requires_grad_()
    found = WEIGHTS[name](pair, w)
    assert type(found) is torch.Tensor
    torch.testing.assert_close(found, WEIGHTS[name](pair.spike, w))
    grad = torch.randn_like(found)
    ours = torch.autograd.grad(found, (pair.spike, w), grad)
    (spike,) = torch.autograd.grad(WEIGHTS[name](pair.spike, w), pair.spike, grad)
    (weight,) = torch.autograd.grad(WEIGHTS[name](pair.values, w), w, grad)
    (other,) = torch.autograd.grad(WEIGHTS[name](pair.spike, w), w, grad)
    torch.testing.assert_close(ours, (spike, weight), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(other, weight)


def test_a_factor_that_the_network_computes_is_refused(pair):
    x, w = torch.rand(2, 4), nn.Parameter(torch.rand(4, 4))
    gates = {
        "of the input": F.linear(x, w).sigmoid().view(2, 1, 1, 4),
        "of spikes": F.linear(pair, w).sigmoid(),
        "of the input, by elements": (x * w[0]).view(2, 1, 1, 4),
    }
    for gate in gates.values():
        for multiply in (operator.mul, operator.truediv):
            with pytest.raises(InputError, match="what the network computes from its input"):
                multiply(pair, gate)
    with pytest.raises(InputError, match="divides by it"):
        1 / pair
    with pytest.raises(InputError, match=r"mul\(\) was called"):
        pair * pair
    with pytest.raises(InputError, match="a weight that the network computes from its spikes"):
        F.linear(pair, gates["of spikes"].mean((0, 1)))
    with pytest.raises(InputError, match="a weight that the network computes from its spikes"):
        F.linear(pair, pair.spike.mean((0, 1)))


LINEAR = {
    "torch.flatten": lambda x: torch.flatten(x, 1),
    "flatten": lambda x: x.flatten(1),
    "view": lambda x: x.view(2, -1),
    "mean": lambda x: x.mean((2, 3)),
    "adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x, 1),
    "avg_pool2d": lambda x: F.avg_pool2d(x, 2),
    "cat": lambda x: torch.cat([x, x], 1),
    "cat by name": lambda x: torch.cat(tensors=(x, x), dim=1),
    "interpolate": lambda x: F.interpolate(x, size=(7, 7)),
    "adaptive_avg_pool": lambda x: nn.AdaptiveAvgPool2d(2)(x),
    "x[:, 1:]": lambda x: x[:, 1:],
    "x[..., 0]": lambda x: x[..., 0],
    "x[mask]": lambda x: x[torch.arange(2) > 0],
    "narrow": lambda x: x.narrow(1, 0, 2),
    "select": lambda x: x.select(1, 0),
    "index_select": lambda x: torch.index_select(x, 1, torch.tensor([2, 0])),
    "gather": lambda x: x.gather(1, torch.tensor([[[[2]]]])),
    "masked_fill": lambda x: x.masked_fill(torch.arange(4) > 2, 0.0),
    "where": lambda x: torch.where(torch.arange(4) > 2, x, 0.0),
    "stack": lambda x: torch.stack((x, x), 1),
    "hstack": lambda x: torch.hstack((x, x)),
    "pad": lambda x: F.pad(x, (1, 1)),
    "pad by copies": lambda x: nn.ReflectionPad2d(1)(x),
    "nn.ZeroPad2d": lambda x: nn.ZeroPad2d(1)(x),
    "pixel_shuffle": lambda x: nn.PixelShuffle(2)(x.repeat(1, 4, 1, 1)),
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "clone": lambda x: x.clone(),
    "to": lambda x: x.to(torch.double).to("cpu"),
    "half": lambda x: x.half(),
    "contiguous": lambda x: x.permute(0, 2, 3, 1).contiguous(),
    "repeat": lambda x: x.repeat(2, 1, 1, 1),
    "expand": lambda x: x.unsqueeze(0).expand(3, -1, -1, -1, -1),
    "flip": lambda x: x.flip(3),
    "roll": lambda x: torch.roll(x, 1, 2),
    "unfold": lambda x: F.unfold(x, 2),
    "nn.Upsample": lambda x: nn.Upsample(scale_factor=2, mode="bilinear")(x),
    "nn.Unflatten": lambda x: nn.Unflatten(3, (2, 2))(x),
    "cumsum": lambda x: x.cumsum(1),
    "mT": lambda x: x.mT,
    "dropout in evaluation": lambda x: F.dropout(x, 0.5, training=False),
    "max_pool2d": lambda x: F.max_pool2d(x, 2),
    "nn.AdaptiveMaxPool2d": lambda x: nn.AdaptiveMaxPool2d(2)(x),
    "a chain": lambda x: x.transpose(1, 2).reshape(2, -1).unsqueeze(0),
}


@pytest.mark.parametrize("name", LINEAR)
def test_linear_functions_take_spike_and_trace(pair, name):
    function = LINEAR[name]
    found = function(pair)
    assert isinstance(found, Pair) and not found.values.requires_grad
    assert torch.equal(found[0], function(pair[0])) and torch.equal(found[1], function(pair.values))


SEVERAL = {
    "chunk": lambda x: x.chunk(2, 3),
    "split": lambda x: torch.split(x, [1, 2], 1),
    "tensor_split": lambda x: torch.tensor_split(x, 2, 2),
    "unbind": lambda x: x.unbind(1),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_linear_functions_with_several_results_give_several_pairs(pair, name):
    function = SEVERAL[name]
    found, spikes, traces = function(pair), function(pair.spike), function(pair.values)
    assert len(found) == len(spikes) > 1
    for part, spike, trace in zip(found, spikes, traces, strict=True):
        assert isinstance(part, Pair)
        assert torch.equal(part.spike, spike) and torch.equal(part.values, trace)


def test_a_map_keeps_the_trace_in_one_byte(pair):
    found = pair[:, 1:].flip(2) * 2
    assert found.trace.stored is pair.trace.stored
    assert torch.equal(found.values, pair.values[:, 1:].flip(2) * 2)


def test_its_shape_makes_constants(pair):
    for make in (torch.zeros_like, torch.ones_like, lambda x: x.new_zeros(2, 3, 4, 4)):
        assert torch.equal(make(pair), make(pair.spike)) and not make(pair).requires_grad


def test_where_the_trace_is_the_spike_any_function_takes_the_spike():
    node = OTTTLIFNode()
    set_rule(node, "sltt")
    pair = node((2 * torch.rand(4, 3)).requires_grad_())
    assert pair.spike_suffices and (pair + pair)[:, 1:].spike_suffices
    for function in (torch.relu, nn.BatchNorm1d(3), lambda x: x * x, lambda x: x @ x.mT):
        found = function(pair)
        assert type(found) is torch.Tensor and found.requires_grad
        torch.testing.assert_close(found, function(pair.spike))
    with pytest.raises(InputError, match="changes a tensor in place"):
        pair.relu_()
    torch.manual_seed(0)
    traced = OTTTLIFNode()(2 * torch.rand(4, 3))
    with pytest.raises(InputError, match="trace would not follow it"):
        torch.maximum(pair, traced)


def test_functions_without_gradients_are_refused_where_what_comes_before_learns(pair):
    with torch.no_grad():
        for function in (
            torch.flatten,
            lambda x: x.mean(),
            lambda x: F.linear(x, torch.ones(2, 4)),
        ):
            with pytest.raises(InputError, match="what comes before would not learn"):
                function(pair)
        assert torch.equal(pair.detach().flatten().spike, pair.spike.flatten())
        assert pair.shape == (2, 3, 4, 4) and torch.zeros_like(pair).sum() == 0
    assert isinstance(pair.detach(), Pair) and not pair.detach().requires_grad


def test_a_function_of_autograd_of_ones_own_cannot_cut_the_gradient(pair):
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, grad):
            return grad * 2

    with pytest.raises(InputError, match="runs without gradients"):
        Double.apply(pair)


def test_the_module_in_which_it_happened_is_named(pair):
    class Block(nn.Module):
        def forward(self, x):
            return x.abs()

    with pytest.raises(InputError, match=r"abs\(\) was called in Block on what a neuron hands on"):
        Block()(pair)


def test_it_answers_for_shape_and_device_as_its_spike_does(pair):
    assert pair.shape == pair.size() == (2, 3, 4, 4) and pair.size(1) == 3
    assert pair.dim() == pair.ndim == 4 and pair.numel() == 96
    assert pair.requires_grad is True and pair.is_cuda is False
    assert pair.dtype == torch.float32 and pair.device.type == "cpu"
    with pytest.raises(AttributeError):
        pair.no_such_thing  # noqa: B018


NOT_LINEAR = {
    "torch.relu": lambda x: torch.relu(x),
    "abs": lambda x: x.abs(),
    "softmax": lambda x: F.softmax(x, 1),
    "dropout": lambda x: F.dropout(x, 0.5),
    "nn.Dropout2d": lambda x: nn.Dropout2d(0.5)(x),
    "batch norm": lambda x: nn.BatchNorm2d(3)(x),
    "layer norm": lambda x: nn.LayerNorm(4)(x),
    "group norm": lambda x: nn.GroupNorm(1, 3)(x),
    "prelu": lambda x: nn.PReLU()(x),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x),
    "q @ k": lambda x: x @ x.transpose(2, 3),
    "gru": lambda x: nn.GRU(4, 2)(x.flatten(0, 1)),
    "maximum": lambda x: torch.maximum(x, x),
    "x ** 2": lambda x: x**2,
    "a quotient that is rounded": lambda x: torch.div(x, 2, rounding_mode="floor"),
    "the dtype of whole numbers": lambda x: x.type_as(torch.ones(1, dtype=torch.int64)),
    "whole numbers by an example": lambda x: x.to(torch.ones(1, dtype=torch.int64)),
    "abs(x)": abs,
    "x % 2": lambda x: x % 2,
    "x // 2": lambda x: x // 2,
    "a number added": lambda x: x.add(1),
    "a number subtracted": lambda x: torch.sub(x, 0.5),
    "padded with ones": lambda x: F.pad(x, (1, 1), value=1.0),
    "filled with ones": lambda x: x.masked_fill(torch.arange(4) > 2, 1.0),
    "whole numbers": lambda x: x.to(torch.int32),
    "max_pool2d with indices": lambda x: F.max_pool2d(x, 2, return_indices=True),
    "bits read as other numbers": lambda x: x.view(torch.int32),
    "a result with a place of its own": lambda x: torch.mean(x, 1, out=torch.empty(0)),
    "a change in place": lambda x: x.add_(torch.ones(2, 3, 4, 4)),
}


@pytest.mark.parametrize("name", NOT_LINEAR)
def test_any_other_function_is_refused(pair, name):
    before = [part.clone() for part in pair]
    with pytest.raises(InputError, match="the trace would not follow it"):
        NOT_LINEAR[name](pair)
    assert all(map(torch.equal, pair, before))


@pytest.mark.parametrize("name", ["grad_fn", "data", "grad"])
def test_what_only_one_tensor_has_is_refused(pair, name):
    with pytest.raises(InputError, match=f"has no {name}: use a layer"):
        getattr(pair, name)


@pytest.mark.parametrize("term", [1, 0.5, None, "x"])
def test_what_is_neither_current_nor_spikes_is_not_added(pair, term):
    for add in (lambda: pair + term, lambda: term + pair, lambda: pair - term):
        with pytest.raises(InputError, match="cannot be added"):
            add()


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_list_of_more_or_less_than_two_tensors_is_named(pair, count):
    items = [torch.ones(4, 4)] * count
    for take in (layer.Scale(2.0), layer.Linear(4, 2), pair.__add__, pair.__radd__):
        with pytest.raises(InputError, match=r"is not what a neuron hands on"):
            take(items)


def test_a_list_of_something_else_than_tensors_is_named(pair):
    for take in (layer.Scale(2.0), layer.Linear(4, 2), pair.__radd__):
        with pytest.raises(InputError, match=r"\[Tensor, tuple\] is not what a neuron hands on"):
            take((torch.ones(2, 4), (torch.ones(2, 4),)))  # as of a recurrent layer of PyTorch


def set_first(pair: Pair) -> None:
    pair[0] = torch.ones(2)


def delete_first(pair: Pair) -> None:
    del pair[0]


LIST_METHODS = {
    "==": lambda x: x == x,
    "== []": lambda x: x == [],
    "!=": lambda x: x != [*x],
    "<": lambda x: x < [],
    "in": lambda x: x.spike in x,
    "x[0] =": set_first,
    "del x[0]": delete_first,
    "append": lambda x: x.append(x.spike),
    "extend": lambda x: x.extend([x.spike]),
    "insert": lambda x: x.insert(0, x.spike),
    "pop": lambda x: x.pop(),
    "remove": lambda x: x.remove(x.spike),
    "clear": lambda x: x.clear(),
    "index": lambda x: x.index(x.spike),
    "count": lambda x: x.count(x.spike),
    "copy": lambda x: x.copy(),
    "sort": lambda x: x.sort(),
    "reverse": lambda x: x.reverse(),
}


@pytest.mark.parametrize("name", LIST_METHODS)
def test_it_cannot_be_compared_or_changed_like_a_list(pair, name):
    with pytest.raises(InputError, match="of lists does not exist for"):
        LIST_METHODS[name](pair)
    assert len([*pair]) == 2


def test_no_method_of_lists_is_left_that_would_see_an_empty_list():
    """Each is ours, or one that reads nothing of the list."""
    harmless = {"__class_getitem__", "__getattribute__", "__new__", "__sizeof__"}
    assert {name for name in vars(list) if name not in vars(Pair)} - harmless == {"__hash__"}
    assert Pair.__hash__ is None


READS = {
    "list": list,
    "tuple": tuple,
    "star": lambda x: [*x],
    "slice": lambda x: x[:],
    "negative items": lambda x: [x[-2], x[-1]],
    "reversed": lambda x: [*reversed(x)][::-1],
    "arguments": lambda x: (lambda *args: args)(*x),
    "zip": lambda x: [part for part, _ in zip(x, range(2), strict=True)],
    "map": lambda x: [*map(torch.clone, x)],
}


@pytest.mark.parametrize("name", READS)
def test_it_is_read_like_the_list_of_two_tensors(pair, name):
    found = READS[name](pair)
    assert len(found) == 2 and type(found[1]) is torch.Tensor
    assert found[0].requires_grad and torch.equal(found[0], pair.spike)
    assert torch.equal(found[1], pair.values)


def test_a_copy_is_a_pair_of_its_own(pair):
    shallow = copy.copy(pair)
    assert shallow.spike is pair.spike and shallow.trace is pair.trace
    deep = copy.deepcopy(Pair(pair.spike.detach(), pair.trace))
    deep.spike.zero_()
    deep.trace.stored.zero_()
    assert pair.spike.any() and pair.values.any()


def test_a_tree_of_tensors_takes_it_as_a_leaf(pair):
    found = tree_map(lambda x: x * 2, {"a": pair})["a"]
    assert torch.equal(found.spike, 2 * pair.spike) and torch.equal(found.values, 2 * pair.values)


class Residual(nn.Module):
    """Sums of pairs and a join, as a block of a user may write them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (
            layer.OTTTSequential(layer.Linear(4, 4), OTTTLIFNode()) for _ in range(2)
        )
        self.last = layer.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.first(x)
        b = self.second(a)
        return self.last(torch.cat([sum([a, b]), 2 * a], 1))


@pytest.mark.slow
def test_blocks_that_add_and_join_pairs_compile():
    torch._dynamo.reset()
    grads = []
    for compiled in (False, True):
        torch.manual_seed(0)
        net = Residual()
        for parameter in net.parameters():
            nn.init.normal_(parameter)
        step = torch.compile(net, fullgraph=True, backend="aot_eager") if compiled else net
        for x in torch.randn(3, 5, 4):
            step(x).square().sum().backward()
        grads.append([p.grad for p in net.parameters()])
    assert all(g.norm() > 0 for g in grads[0])
    torch.testing.assert_close(*grads)


def test_a_penalty_on_spikes_has_a_gradient_and_a_number():
    torch.manual_seed(0)
    x = (2 * torch.rand(4, 3)).double().requires_grad_()
    found = []
    for take in (lambda pair: pair, lambda pair: pair.spike):
        spikes = take(OTTTLIFNode()(x))
        loss = x.sum() * 0 + 0.1 * spikes.mean()
        loss.backward()
        found.append((float(loss), loss.item(), x.grad))
        x.grad = None
    assert found[0][0] == found[0][1] == found[1][0] > 0 and found[0][2].norm() > 0
    torch.testing.assert_close(found[0][2], found[1][2])


@pytest.mark.parametrize("rule", ["ottt", "bptt"])
def test_a_training_step_takes_a_penalty_on_spikes(rule):
    grads = []
    for take in (lambda x: x, lambda x: x[0] if isinstance(x, Pair) else x):
        torch.manual_seed(0)
        net = set_rule(Residual(), rule)
        seen = []
        net.first.register_forward_hook(lambda module, args, out, seen=seen: seen.append(out))
        optimizer = torch.optim.SGD(net.parameters(), 0.0)

        def loss_fn(y, target, seen=seen, take=take):
            return y.square().mean() + take(seen[-1]).mean()

        x_seq = 3 * torch.randn(3, 5, 4)
        train_step(net, optimizer, x_seq, torch.zeros(5), loss_fn=loss_fn)
        grads.append([p.grad for p in net.parameters()])
    assert grads[0][0].norm() > 0
    torch.testing.assert_close(*grads)
