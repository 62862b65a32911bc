"""The networks that are measured, each written for several sides with the same weights."""

from collections.abc import Callable
from functools import partial
from types import ModuleType, SimpleNamespace

import timm
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional as sj_functional
from spikingjelly.activation_based import layer as sj_layer
from spikingjelly.activation_based import neuron as sj_neuron
from spikingjelly.activation_based import surrogate
from torch import Tensor, nn

from sj_ottt import layer, neuron
from sj_ottt.layer.synapse import fast_format

VGG = ((64, 128), (256, 256), (512, 512), (512, 512))
TINY_VGG = ((8,), (8,))


def vgg(make_neuron: Callable[[], nn.Module], layers: ModuleType, stages=VGG) -> nn.Sequential:
    """Return the paper's VGG for images [N, 3, H, W] of CIFAR's size, of one library's classes."""
    torch.manual_seed(0)
    modules: list[nn.Module] = []
    channels = 3
    for i, widths in enumerate(stages):
        modules += [layers.AvgPool2d(2)] if i > 0 else []
        for width in widths:
            conv = layers.WSConv2d(channels, width, 3, padding=1)
            nn.init.constant_(conv.gain, 2.74)  # stands for the factor behind the neuron
            modules += [conv, make_neuron()]
            channels = width
    modules += [layers.AdaptiveAvgPool2d(1), layers.Flatten(), layers.Linear(channels, 10)]
    return layers.OTTTSequential(*modules)


def our_vgg(tiny: bool = False, backend: str = "auto") -> nn.Sequential:
    """Return the VGG of our classes, the trace as the timm models keep it."""
    node = partial(neuron.OTTTLIFNode, trace_dtype="packed", backend=backend)
    return vgg(node, layer, TINY_VGG if tiny else VGG)


def spikingjelly_vgg(tiny: bool = False) -> nn.Sequential:
    """Return the VGG of SpikingJelly's classes."""
    return vgg(sj_neuron.OTTTLIFNode, sj_layer, TINY_VGG if tiny else VGG)


def bptt_vgg(tiny: bool = False) -> nn.Sequential:
    """Return the VGG for BPTT: SpikingJelly's multi-step LIF nodes, the reset detached."""
    modules = [
        sj_neuron.LIFNode(2.0, False, 1.0, None, surrogate.Sigmoid(), True)
        if isinstance(module, sj_neuron.OTTTLIFNode)
        else module
        for module in spikingjelly_vgg(tiny)
    ]
    net = nn.Sequential(*modules)
    sj_functional.set_step_mode(net, "m")
    return net


def authors_vgg(tiny: bool = False) -> nn.Sequential:
    """Return the VGG in its authors' arithmetic: spikes and traces as one batch of twice the size.

    Each synapse is applied twice: to the spikes without autograd, for the values, and to the traces
    with it, for the weight's gradient.
    """
    layers = SimpleNamespace(
        WSConv2d=_AuthorsConv2d,
        Linear=_AuthorsLinear,
        AvgPool2d=nn.AvgPool2d,
        AdaptiveAvgPool2d=nn.AdaptiveAvgPool2d,
        Flatten=nn.Flatten,
        OTTTSequential=nn.Sequential,
    )
    return vgg(_AuthorsLIF, layers, TINY_VGG if tiny else VGG)


class _InPlaceOf(torch.autograd.Function):
    """Returns the values of one tensor and sends the gradient to another."""

    @staticmethod
    def forward(ctx, receives: Tensor, values: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _TwoForwards:
    sees_spikes = True

    def forward(self, x: Tensor) -> Tensor:
        if not self.sees_spikes:
            return super().forward(x)
        spike, trace = x.chunk(2)
        with torch.no_grad():
            value = super().forward(spike)
        return _InPlaceOf.apply(super().forward(_InPlaceOf.apply(spike, trace)), value)


class _AuthorsConv2d(_TwoForwards, sj_layer.WSConv2d):
    def __init__(self, in_channels: int, *args, **kwargs):
        super().__init__(in_channels, *args, **kwargs)
        self.sees_spikes = in_channels != 3


class _AuthorsLinear(_TwoForwards, nn.Linear):
    pass


class _AuthorsLIF(sj_neuron.OTTTLIFNode):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(super().forward(x))


def from_timm(name: str, backend: str = "auto") -> nn.Module:
    """Return a network as timm gives it, with what starts at 0 made to count."""
    torch.manual_seed(0)
    node = partial(neuron.OTTTLIFNode, trace_dtype="packed", backend=backend)
    model = timm.create_model(name, num_classes=10, in_chans=3, neuron=node)
    for parameter in model.parameters():
        if parameter.dim() == 0:
            nn.init.ones_(parameter)
    nn.init.normal_(model.fc.weight, std=0.1)
    return model


def our_nf_resnet(tiny: bool = False, backend: str = "auto") -> nn.Module:
    """Return NF-ResNet-34, or a tiny one."""
    return from_timm("test_ottt_nf_resnet" if tiny else "ottt_nf_resnet34", backend)


def spikingjelly_nf_resnet(tiny: bool = False) -> nn.Module:
    """Return the same network and weights, each layer and neuron SpikingJelly's."""
    model = our_nf_resnet(tiny)
    _on_spikingjelly(model)
    return model


def _on_spikingjelly(module: nn.Module) -> None:
    for name, child in module.named_children():
        _on_spikingjelly(child)
        if isinstance(child, neuron.OTTTLIFNode):
            setattr(module, name, sj_neuron.OTTTLIFNode())
        elif isinstance(child, layer.OTTTSequential):
            setattr(module, name, sj_layer.OTTTSequential(*child))
        elif type(child).__module__ == layer.__name__ and hasattr(sj_layer, type(child).__name__):
            # Theirs takes a tensor, and spike and trace only inside their container.
            child.__class__ = getattr(sj_layer, type(child).__name__)
            if name != "stem":
                setattr(module, name, sj_layer.OTTTSequential(child))


def count_neurons(model: nn.Module, x: Tensor) -> int:
    """Return the number of LIF neurons of a model, given one sample x [1, ...]."""
    with torch.no_grad():
        model(x)
    return sum(m.v.numel() for m in model.modules() if isinstance(m, neuron.OTTTLIFNode))


def bare_products(model: nn.Module, x: Tensor, steps: int) -> Callable[[], None]:
    """Return the floor: the convolutions and linear products of a network and nothing else.

    One forward product, one gradient to the input (but not to the network's own) and one to the
    weight each, per time step, on tensors in the memory format that makes the product fastest.
    """
    products: list[Callable[[], object]] = []

    def add_product(module: nn.Module, args: tuple, out: Tensor) -> None:
        spike = args[0][0] if isinstance(args[0], list) else args[0]
        shape, first = spike.shape, not products
        if isinstance(module, nn.Linear):
            s, g = (torch.rand(t.shape, device=t.device) for t in (spike, out))
            products.append(lambda: (F.linear(s, module.weight), g @ module.weight, g.t() @ s))
            return
        s = (torch.rand(shape, device=x.device) < 0.2).float()
        memory_format = fast_format(module.weight, s)
        s = s.contiguous(memory_format=memory_format)
        g = torch.randn(out.shape, device=x.device).contiguous(memory_format=memory_format)
        w = module.weight.detach().contiguous(memory_format=memory_format)
        geometry = (module.stride, module.padding, module.dilation)

        def product() -> None:
            F.conv2d(s, w, None, *geometry)
            torch.ops.aten.convolution_backward(
                g, s, w, None, *geometry, False, [0, 0], 1, [not first, True, False]
            )

        products.append(product)

    hooks = [
        m.register_forward_hook(add_product)
        for m in model.modules()
        if isinstance(m, (nn.Conv2d, nn.Linear))
    ]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()

    def run() -> None:
        with torch.no_grad():
            for _ in range(steps):
                for product in products:
                    product()

    return run
