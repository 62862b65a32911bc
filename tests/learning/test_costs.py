"""What a training step costs: layout and memory."""

from functools import partial

import pytest
import torch

from benchmarks.measure import peak_bytes, slope
from sj_ottt import layer, learning
from sj_ottt._ops import trace
from sj_ottt.neuron import OTTTLIFNode


def small_vgg(**kwargs) -> layer.OTTTSequential:
    node = partial(OTTTLIFNode, **kwargs)
    modules, channels = [], 3
    for i, width in enumerate((16, 24, 24)):
        modules += [layer.AvgPool2d(2)] if i == 2 else []
        modules += [layer.WSConv2d(channels, width, 3, padding=1), node(), layer.Scale(2.74)]
        channels = width
    return layer.OTTTSequential(
        *modules, layer.AdaptiveAvgPool2d(1), layer.Flatten(), layer.Linear(channels, 4)
    )


def test_activations_stay_channels_last_from_input_to_head():
    net, formats = small_vgg(trace_dtype="packed"), []
    for module in net:
        module.register_forward_hook(
            lambda m, _, out: (
                formats.append(
                    (out[0] if isinstance(out, list) else out).is_contiguous(
                        memory_format=torch.channels_last
                    )
                )
                if not isinstance(m, (layer.Flatten, layer.Linear))
                else None
            )
        )
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    learning.train_step(net, optimizer, torch.randn(4, 3, 16, 16), torch.arange(4), steps=2)
    assert len(formats) == 2 * 11 and all(formats)


def training(n: int, steps: int, **kwargs):
    torch.manual_seed(0)
    net = small_vgg(**kwargs)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    x_seq = torch.randn(steps, n, 3, 32, 32)
    return lambda: learning.train_step(net, optimizer, x_seq, torch.zeros(n).long())


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_steps():
    peaks = [peak_bytes(training(4, steps, trace_dtype="packed")) for steps in (2, 64)]
    assert abs(peaks[1] / peaks[0] - 1) < 0.01


@pytest.mark.slow
def test_memory_is_that_of_the_state():
    neurons = 32 * 32 * (16 + 24) + 16 * 16 * 24
    sizes = [4, 8, 16]

    def per_neuron(**kwargs) -> float:
        return slope(sizes, [peak_bytes(training(n, 6, **kwargs)) for n in sizes]) / neurons

    assert trace.TRACE_DTYPES["packed"].itemsize == 1
    packed, full = per_neuron(trace_dtype="packed"), per_neuron(trace_dtype="float32")
    # The state is 5 bytes; beside it live two numbers and two bytes a neuron of the largest layer.
    assert packed < 5 + 10 * 24 / 46
    assert full > packed + 2.5
