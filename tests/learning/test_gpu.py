"""Training on a GPU gives what it gives by PyTorch's operations, as it is used there."""

from functools import partial

import pytest
import timm
import torch

from sj_ottt import layer, learning, set_rule
from sj_ottt._ops import lif_gpu
from sj_ottt.neuron import OTTTLIFNode
from tests.networks import relative_error

pytestmark = pytest.mark.gpu
DEVICE = "cuda"


@pytest.fixture(autouse=True)
def kernels():
    if lif_gpu.missing() is not None:
        pytest.skip(lif_gpu.missing())
    assert lif_gpu.available(0)


def made(name, backend, rule="ottt", dtype=torch.float64, form="packed"):
    torch.manual_seed(0)
    node = partial(OTTTLIFNode, trace_dtype=form, backend=backend)
    model = timm.create_model(name, num_classes=4, neuron=node, rule=rule)
    for parameter in model.parameters():
        if parameter.dim() == 0:
            torch.nn.init.ones_(parameter)
    torch.nn.init.normal_(model.fc.weight)
    return model.to(DEVICE, dtype)


def batch(dtype=torch.float64):
    torch.manual_seed(1)
    x_seq = 3 * torch.randn(5, 4, 3, 32, 32, device=DEVICE, dtype=dtype)
    return x_seq, torch.arange(4, device=DEVICE)


def gradients(model, x_seq, target, **options):
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    loss, logits = learning.train_step(model, optimizer, x_seq, target, **options)
    return [loss, logits, *(p.grad for p in model.parameters())]


@pytest.mark.parametrize(
    ("name", "rule", "form"),
    [
        ("test_ottt_vgg", "ottt", "packed"),
        ("test_ottt_vgg", "ndot", "packed"),
        ("test_ottt_nf_resnet", "ottt", "float32"),
        ("test_ottt_nf_resnet", "sltt", "packed"),
    ],
)
def test_gradient_of_the_kernels_is_that_of_pytorch(name, rule, form):
    plain, ours = (
        gradients(made(name, backend, rule, form=form), *batch()) for backend in ("torch", "auto")
    )
    for a, b in zip(ours, plain, strict=True):
        assert b.norm() > 0 and relative_error(a, b) < 1e-9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["test_ottt_vgg", "test_ottt_nf_resnet"])
def test_trains_in_half_precision(name, dtype):
    """Under autocast; weights are standardized in float32."""
    exact = gradients(made(name, "auto", dtype=torch.float32), *batch(torch.float32))
    scaler = torch.amp.GradScaler(DEVICE, 256.0) if dtype == torch.float16 else None
    with torch.autocast(DEVICE, dtype):
        model = made(name, "auto", dtype=torch.float32)
        found = gradients(model, *batch(torch.float32), scaler=scaler)
    assert model.fc.weight.grad.dtype == torch.float32
    assert all(value.isfinite().all() for value in found)
    assert relative_error(found[0], exact[0]) < 0.2
    weights = [value.flatten() for value in found[2:]], [value.flatten() for value in exact[2:]]
    a, b = (torch.cat(values) for values in weights)
    assert torch.nn.functional.cosine_similarity(a, b, dim=0) > 0.5


def test_channels_last():
    model = made("test_ottt_vgg", "auto").to(memory_format=torch.channels_last)
    x_seq, target = batch()
    plain = gradients(made("test_ottt_vgg", "torch"), x_seq, target)
    x_seq = x_seq.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (5, 4))
    for a, b in zip(gradients(model, x_seq, target), plain, strict=True):
        assert relative_error(a, b) < 1e-9


def test_steps_are_captured_in_a_cuda_graph():
    """Forward and backward of three steps; replays see new inputs."""
    torch.manual_seed(0)
    net = layer.OTTTSequential(
        layer.WSConv2d(3, 8, 3, padding=1),
        OTTTLIFNode(trace_dtype="packed"),
        layer.AvgPool2d(2),
        layer.Flatten(),
        layer.Linear(8 * 16, 4),
    ).to(DEVICE)
    x_seq = 3 * torch.randn(3, 4, 3, 8, 8, device=DEVICE)

    def run():
        net.zero_grad(set_to_none=False)
        learning.reset_state(net)
        for x in x_seq:
            net(x).square().sum().backward()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    x_seq.copy_(3 * torch.randn_like(x_seq))
    graph.replay()
    replayed = [p.grad.clone() for p in net.parameters()]
    run()
    for a, p in zip(replayed, net.parameters(), strict=True):
        assert p.grad.norm() > 0 and relative_error(a, p.grad) < 1e-3


def test_a_compiled_network_holds_the_kernels_in_one_graph():
    torch._dynamo.reset()
    net = torch.nn.Sequential(
        torch.nn.Linear(16, 8), OTTTLIFNode(trace_dtype="packed"), torch.nn.Flatten()
    ).to(DEVICE)
    set_rule(net, "sltt")
    x = 3 * torch.randn(2, 16, device=DEVICE)
    results = []
    for model in (net, torch.compile(net, backend="aot_eager", fullgraph=True)):
        learning.reset_state(net)
        net.zero_grad()
        out = [model(x), model(x)]
        sum(y.sum() for y in out).backward()
        results.append([*out, net[0].weight.grad.clone()])
    assert results[0][2].norm() > 0
    torch.testing.assert_close(results[1], results[0])
