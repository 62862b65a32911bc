"""The documentation's table of what is refused: each row happens, in the words that it says."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import layer as sj_layer
from spikingjelly.activation_based import neuron as sj_neuron
from torch import nn
from torch.utils.checkpoint import checkpoint

from sj_ottt import InputError, layer, learning, set_rule
from sj_ottt.learning import FPTT, train_step
from sj_ottt.neuron import OTTTLIFNode


def rows() -> dict[str, str]:
    """What is built → a part of the answer, of the table on the page of limits."""
    text = (Path(__file__).parents[1] / "docs" / "limits.md").read_text(encoding="utf-8")
    table = text.split("| refused | the error says |\n| --- | --- |\n")[1].split("\n\n")[0]
    cells = [line.strip("|").split(" | ") for line in table.splitlines()]
    return {what.strip(): words.strip().strip("`") for what, words in cells}


def chain(*behind: nn.Module) -> layer.OTTTSequential:
    return layer.OTTTSequential(layer.Linear(4, 8), OTTTLIFNode(), *behind)


def train(net: nn.Module, **kwargs) -> None:
    torch.manual_seed(0)
    optimizer = kwargs.pop("optimizer", None) or torch.optim.SGD(net.parameters(), 0.1)
    x_seq = 2 * torch.rand(3, 2, 4)
    train_step(net, optimizer, x_seq, torch.tensor([0, 1]), **kwargs)


class Within(nn.Module):
    """A network with a function of one's own between two layers."""

    def __init__(self, function, *modules: nn.Module):
        super().__init__()
        self.before, self.function = chain(), function
        self.part = nn.Sequential(*modules)
        self.after = layer.Linear(8, 2)

    def forward(self, x):
        return self.after(self.function(self.part, self.before(x)))


class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.before, self.after = nn.Linear(4, 8), chain(), layer.Linear(8, 2)

    def forward(self, x):
        return self.after(self.before(x) * self.gate(x).sigmoid())


class WithFeedback(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = chain(), layer.Linear(8, 2)
        self.feedback = layer.Feedback(layer.Linear(8, 8)).connect(self.body, self.body[1])

    def forward(self, x):
        return self.head(self.body(x))


class Ensemble(nn.Module):
    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList([chain(layer.Linear(8, 2)) for _ in range(2)])
        self.parts[0].prediction = "last"

    def forward(self, x):
        return self.parts[0](x) + self.parts[1](x)


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.a, self.b = chain(), layer.Linear(8, 2), layer.Linear(8, 3)

    def forward(self, x):
        x = self.body(x)
        return self.a(x), self.b(x)


def without_gradients(part: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return part(x)


def head() -> layer.Linear:
    return layer.Linear(8, 2)


def frozen() -> nn.Module:
    net = chain(head())
    net[1].eval()
    return net


def carry_another_batch() -> None:
    net = chain(head())
    train(net, reset=False)
    learning.predict(net, torch.rand(3, 5, 4), reset=False)


def through_time(net: nn.Module) -> nn.Module:
    return set_rule(net, "bptt")


def fptt(net: nn.Module) -> FPTT:
    return FPTT(torch.optim.SGD(net.parameters(), 0.1), alpha=0.5)


def fptt_with_lengths() -> None:
    net = through_time(chain(head()))
    train(net, optimizer=fptt(net), lengths=torch.tensor([3, 2]))


CASES = {
    "a function that no trace can follow behind a neuron: ReLU, softmax, batch or layer norm …": (
        lambda: train(Within(lambda part, x: F.softmax(x, 1)))
    ),
    "`nn.Dropout` behind a neuron": lambda: train(Within(lambda part, x: F.dropout(x))),
    "a number added to spikes": lambda: train(Within(lambda part, x: x + 1)),
    "spikes times what the network computes: attention, gates": lambda: train(Gate()),
    "a change in place of what a neuron hands on": lambda: train(Within(lambda part, x: x.mul_(2))),
    "a part in `torch.no_grad()` behind one that learns": lambda: train(
        Within(without_gradients, layer.Linear(8, 8))
    ),
    "`torch.utils.checkpoint` round neurons": lambda: train(
        Within(
            lambda part, x: checkpoint(part, x[0], use_reentrant=False),
            layer.Linear(8, 8),
            OTTTLIFNode(),
        )
    ),
    "neurons that hand on no trace, other than at the very end": lambda: train(
        chain(nn.Linear(8, 8), sj_neuron.LIFNode(), head())
    ),
    "SpikingJelly's recurrent containers": lambda: train(
        chain(
            sj_layer.LinearRecurrentContainer(OTTTLIFNode(), in_features=8, out_features=8), head()
        )
    ),
    "SpikingJelly's synapse filters and delays": lambda: train(
        chain(sj_layer.SynapseFilter(2.0), head())
    ),
    "several time steps at once (`chunk=K`) with an update at each step": lambda: train(
        chain(head()), update="online", chunk=2
    ),
    "several time steps at once with a feedback": lambda: train(WithFeedback(), chunk=2),
    "a CUDA graph of what is not on one GPU": lambda: train(chain(head()), cuda_graph=True),
    "a threshold that is never reached": lambda: OTTTLIFNode(v_threshold=float("inf")),
    "several outputs without a loss of one's own": lambda: train(TwoHeads()),
    "a model of several that predict in different ways": lambda: train(Ensemble()),
    "steps without a backward pass where neurons are in evaluation mode": lambda: train(
        frozen(), backward_steps=2
    ),
    "an online update or `backward_steps` under BPTT": lambda: train(
        through_time(chain(head())), update="online"
    ),
    "`accumulation` with an update at each step": lambda: train(
        chain(head()), update="online", accumulation=(0, 2)
    ),
    "`lengths`, `accumulation`, `clip_norm` or `ema` with FPTT": fptt_with_lengths,
    "a state that is carried on to another batch size": carry_another_batch,
    "tracing or exporting a model that keeps a state": lambda: torch.export.export(
        chain(head()).eval(), (torch.rand(2, 4),)
    ),
}


def test_every_row_has_a_case():
    assert set(rows()) == set(CASES)


@pytest.mark.parametrize("what", CASES)
def test_it_is_refused_in_these_words(what):
    with pytest.raises(InputError, match=re.escape(rows()[what])) as error:
        CASES[what]()
    assert "\n" not in str(error.value)


def test_the_same_networks_without_these_things_train():
    """The control: what surrounds each case is not what is refused."""
    train(Within(lambda part, x: part(x), layer.Linear(8, 8), OTTTLIFNode()))
    train(chain(layer.Linear(8, 8), OTTTLIFNode(), head()))
    train(chain(head()), update="online", clip_norm=1.0)
    train(chain(head()), chunk=2)
    train(WithFeedback())
    train(TwoHeads(), loss_fn=lambda y, target: F.cross_entropy(y[0], target))
