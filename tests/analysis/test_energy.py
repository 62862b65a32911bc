"""Energy: the counts of SpikingJelly's counters on the same network, times stated constants."""

import pytest
import torch
from spikingjelly.activation_based import functional, op_counter
from torch import nn

from sj_ottt import InputError, analysis, layer
from sj_ottt.neuron import OTTTLIFNode


def build():
    torch.manual_seed(0)
    return layer.OTTTSequential(
        layer.Conv2d(2, 4, 3, bias=False), OTTTLIFNode(),
        layer.Conv2d(4, 5, 3, padding=1, stride=2), OTTTLIFNode(),
        layer.MaxPool2d(2), layer.Flatten(), layer.Linear(20, 3),
    )  # fmt: skip


def test_it_counts_as_spikingjelly_does():
    model, x_seq = build(), 4 * torch.randn(4, 3, 2, 10, 10)
    rows = {row.layer: row for row in analysis.energy(model, x_seq)}
    macs, acs = op_counter.MACCounter(), op_counter.SynOpCounter()
    functional.reset_net(model)
    with op_counter.DispatchCounterMode([macs, acs]), torch.no_grad():
        model.eval()
        for x in x_seq:
            model(x)
    functional.reset_net(model)
    total = rows.pop("total")
    assert total.accumulates == acs.get_total() / 3 > 0
    assert total.multiply_accumulates == macs.get_total() / 3 == 4 * 8 * 8 * 4 * 2 * 9
    assert [*rows] == ["0", "2", "6"]
    assert rows["0"].accumulates == 0 == rows["2"].multiply_accumulates
    assert sum(row.joules for row in rows.values()) == pytest.approx(total.joules)
    expected = total.accumulates * 0.9e-12 + total.multiply_accumulates * 4.6e-12
    assert total.joules == pytest.approx(expected)


def test_its_constants_can_be_changed():
    model, x_seq = build(), 4 * torch.randn(4, 3, 2, 10, 10)
    *_, total = analysis.energy(model, x_seq, analysis.EnergyCosts(mac=2.0, ac=0.0))
    assert total.joules == 2 * total.multiply_accumulates
    with pytest.raises(InputError, match=r"mac=-1\.0: give the joules"):
        analysis.EnergyCosts(mac=-1.0)
    with pytest.raises(InputError, match="ac=nan: give the joules"):
        analysis.EnergyCosts(ac=float("nan"))


def test_a_network_without_spikes_is_refused():
    with pytest.raises(InputError, match="no layer that sees spikes"):
        analysis.energy(nn.Sequential(nn.Linear(4, 4)), torch.randn(2, 3, 4))
