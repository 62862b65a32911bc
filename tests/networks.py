"""Networks that can be built from SpikingJelly's classes or from ours, and how to compare them."""

import copy
import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
from spikingjelly.activation_based import layer as sj_layer
from spikingjelly.activation_based import neuron as sj_neuron
from torch import nn

from sj_ottt import layer, neuron

SPIKINGJELLY = (sj_neuron, sj_layer)
OURS = (neuron, layer)


def random_network(seed: int, neurons, layers, chain=None) -> nn.Sequential:
    """A random chain of convolutions, sWS convolutions, pools and linear layers, in float64.

    The architecture and its weights depend on the seed alone; input [N, 2, 12, 12], 4 outputs.
    """
    rng = random.Random(seed)
    torch.manual_seed(seed)
    channels, size, modules = 2, 12, []
    for _ in range(rng.randint(1, 3)):
        out = rng.choice([3, 4, 6])
        kernel = rng.choice([1, 3])
        kwargs = {"stride": rng.choice([1, 1, 2]), "padding": kernel // 2}
        if kernel == 3 and rng.random() < 0.3:
            kwargs = {"padding": rng.choice(["same", 2]), "padding_mode": "circular"}
        kwargs["bias"] = rng.random() < 0.8
        conv = rng.choice([layers.Conv2d, layers.WSConv2d, nn.Conv2d])
        if conv is layers.WSConv2d:
            kwargs.pop("padding_mode", None)  # SpikingJelly's ignores it
        modules.append(conv(channels, out, kernel, **kwargs))
        tau, v_reset = rng.choice([1.5, 2.0, 4.0]), rng.choice([None, None, 0.0])
        modules.append(neurons.OTTTLIFNode(tau=tau, v_reset=v_reset, decay_input=seed % 2 == 1))
        channels = out
        size = modules[-2](torch.zeros(1, modules[-2].in_channels, size, size)).shape[-1]
        if size > 3 and rng.random() < 0.6:
            modules.append(rng.choice([layers.AvgPool2d, layers.MaxPool2d, nn.AvgPool2d])(2))
            size //= 2
    modules.append(layers.Flatten())
    linear = rng.choice([layers.WSLinear, layers.Linear])
    modules += [linear(channels * size * size, 8), neurons.OTTTLIFNode(), nn.Linear(8, 4)]
    drive = 12.0 if seed % 2 else 4.0  # with decay_input the current is divided by tau
    for module in modules:
        # Without a gain the standardized layers stay below the threshold: a silent network has
        # no gradient, and then everything equals everything.
        if getattr(module, "gain", None) is not None:
            nn.init.constant_(module.gain, drive)
        elif isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.normal_(module.weight, std=0.75 * drive / module.weight[0].numel() ** 0.5)
    return (chain or layers.OTTTSequential)(*modules).double()


def random_sequence(seed: int, n: int = 3, steps: int = 7):
    """x_seq [N, T, 2, 12, 12] and target_seq [N, T, 4] in float64."""
    torch.manual_seed(1000 + seed)
    return 2 * torch.rand(n, steps, 2, 12, 12).double(), torch.randn(n, steps, 4).double()


def train_once(train, model, x_seq, target_seq, online):
    """One batch on a copy of the model: outputs, gradients, new parameters, firing rates."""
    model = copy.deepcopy(model)
    rates, hooks = {}, []
    for name, module in model.named_modules():
        if isinstance(module, sj_neuron.BaseNode):
            hooks.append(
                module.register_forward_hook(
                    lambda _, __, out, name=name: rates.setdefault(name, []).append(
                        out[0].detach().mean().item()
                    )
                )
            )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    loss, outputs = train(model, optimizer, x_seq, target_seq, F.mse_loss, online)
    return {
        "loss": loss,
        "outputs": outputs,
        "grads": {k: p.grad for k, p in model.named_parameters()},
        "parameters": {k: p.detach() for k, p in model.named_parameters()},
        "rates": {k: sum(v) / len(v) for k, v in rates.items()},
    }


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    """‖a − b‖ / ‖b‖."""
    return ((a - b).norm() / b.norm()).item()


def largest_error(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The largest relative error of any gradient of a against that of b."""
    return max(relative_error(a[k], b[k]) for k in b)


def parameters(model: nn.Module) -> torch.Tensor:
    """All parameters of a model as one vector, without a graph."""
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def peak_saved_bytes(run: Callable[[], object]) -> int:
    """The most bytes that autograd holds between forward and backward while a function runs."""
    held = peak = 0

    class Saved:
        def __init__(self, tensor: torch.Tensor):
            nonlocal held, peak
            self.tensor, self.bytes = tensor, tensor.numel() * tensor.element_size()
            held += self.bytes
            peak = max(peak, held)

        def __del__(self):
            nonlocal held
            held -= self.bytes

    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
        run()
    return peak


def assert_alive(result) -> None:
    """Refuse a comparison that silence would pass: all neurons fire, all weights learn."""
    assert result["rates"] and all(0.01 < rate < 0.99 for rate in result["rates"].values())
    assert all(g.norm() > 0 for g in result["grads"].values())
