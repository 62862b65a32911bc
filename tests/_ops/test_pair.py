"""What a neuron hands on: sums, linear functions, and the refusal of all that loses the trace."""

import copy
import operator

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import tree_map

from sj_ottt import InputError, layer
from sj_ottt.layer import Pair
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


def test_added_to_a_current_it_counts_as_its_spike(pair):
    current = torch.randn(2, 3, 4, 4)
    expected = current + pair.spike
    in_place = current.clone()
    in_place += pair
    for found in (
        pair + current,
        current + pair,
        torch.add(current, pair),
        torch.add(pair, other=current),
        in_place,
    ):
        assert type(found) is torch.Tensor and torch.equal(found, expected)


def test_a_factor_scales_spike_and_trace(pair):
    for found in (2.5 * pair, pair * 2.5):
        assert torch.equal(found.spike, 2.5 * pair.spike)
        assert torch.equal(found.values, 2.5 * pair.values)
    for multiply in (
        lambda: nn.Parameter(torch.ones(3, 4, 4)) * pair,
        lambda: pair * torch.ones(()),
    ):
        with pytest.raises(InputError, match=r"mul\(\) was called on what a neuron hands on"):
            multiply()


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
    "a chain": lambda x: x.transpose(1, 2).reshape(2, -1).unsqueeze(0),
}


@pytest.mark.parametrize("name", LINEAR)
def test_linear_functions_take_spike_and_trace(pair, name):
    function = LINEAR[name]
    found = function(pair)
    assert isinstance(found, Pair) and not found.values.requires_grad
    assert torch.equal(found[0], function(pair[0])) and torch.equal(found[1], function(pair.values))


def test_a_tensor_joined_to_a_pair_is_its_own_trace(pair):
    current = torch.randn(2, 1, 4, 4)
    found = torch.cat([current, pair], 1)
    assert torch.equal(found.spike, torch.cat([current, pair.spike], 1))
    assert torch.equal(found.values, torch.cat([current, pair.values], 1))


def test_it_answers_for_shape_and_device_as_its_spike_does(pair):
    assert pair.shape == pair.size() == (2, 3, 4, 4) and pair.size(1) == 3
    assert pair.dim() == pair.ndim == 4 and pair.numel() == 96
    assert pair.requires_grad is True and pair.is_cuda is False
    assert pair.dtype == torch.float32 and pair.device.type == "cpu"
    with pytest.raises(AttributeError):
        pair.no_such_thing  # noqa: B018


NOT_LINEAR = {
    "torch.relu": lambda x: torch.relu(x),
    "max_pool2d": lambda x: F.max_pool2d(x, 2),
    "abs": lambda x: x.abs(),
    "dropout": lambda x: F.dropout(x, 0.5),
    "torch.sub": lambda x: torch.ones(2, 3, 4, 4) - x,
    "a layer with a weight": lambda x: nn.Linear(4, 2)(x),
    "bits read as other numbers": lambda x: x.view(torch.int32),
    "a result with a place of its own": lambda x: torch.mean(x, 1, out=torch.empty(0)),
    "a change in place": lambda x: x.add_(torch.ones(2, 3, 4, 4)),
    "detach": lambda x: x.detach(),
    "to": lambda x: x.to(torch.double),
}


@pytest.mark.parametrize("name", NOT_LINEAR)
def test_any_other_function_is_refused(pair, name):
    before = [part.clone() for part in pair]
    with pytest.raises(InputError, match="the trace would not follow it"):
        NOT_LINEAR[name](pair)
    assert all(map(torch.equal, pair, before))


@pytest.mark.parametrize("name", ["grad_fn", "data", "T", "grad"])
def test_what_only_one_tensor_has_is_refused(pair, name):
    with pytest.raises(InputError, match=f"has no {name}: use a layer"):
        getattr(pair, name)


@pytest.mark.parametrize("term", [1, 0.5, None, "x"])
def test_what_is_neither_current_nor_spikes_is_not_added(pair, term):
    for add in (lambda: pair + term, lambda: term + pair, lambda: pair.add(term)):
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
