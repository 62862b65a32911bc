"""The fused kernels give the numbers of the plain step.

Each test runs the same source twice: compiled for this machine's processor, where a loop stands
for the grid of threads, and on a GPU where there is one. How it gets there is `test_lif_gpu`'s.
"""

import functools
from dataclasses import replace
from itertools import product

import pytest
import timm
import torch
from spikingjelly.activation_based import surrogate

from sj_ottt import InputError, layer, learning, set_rule
from sj_ottt._ops import lif_launch, trace
from sj_ottt._ops.lif import LIF, lif_step
from sj_ottt._ops.lif_fused import fused_lif_scan, fused_lif_step
from sj_ottt._ops.ndot import NDOT_VARIANTS, NDOTState, advance_ndot
from sj_ottt.neuron import OTTTLIFNode
from tests._ops.conftest import launches
from tests.networks import relative_error

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
SURROGATES = [
    surrogate.Sigmoid(),
    surrogate.ATan(),
    surrogate.PiecewiseQuadratic(),
    surrogate.Rect(alpha=0.7),
]


def state_of(v, trace_dtype):
    """A state in the middle of a sequence: v and a trace in some form (None for none)."""
    if trace_dtype is None:
        return {"v": v, "trace": None}
    stored = trace.zeros(v, trace_dtype)
    for _ in range(3):
        stored = trace.advance(stored, torch.rand(v.shape, device=v.device) > 0.5, 0.5)
    return {"v": v, "trace": stored}


def outputs(step, x, grad, state, lif):
    """Spike, gradient, membrane and decoded trace of one step."""
    x, state = x.detach().requires_grad_(), dict(state)
    spike = step(x, state, lif, lif.lam)
    (grad_x,) = torch.autograd.grad(spike, x, grad)
    assert grad_x.dtype == x.dtype and spike.dtype == x.dtype
    values = None if state["trace"] is None else trace.decode(state["trace"], torch.float64)
    return spike.detach(), grad_x, state["v"], values


def constants(function=SURROGATES[0], tau=2.0, decay_input=False, v_reset=None):
    return LIF(tau, decay_input, 0.8, v_reset, function)


def all_on_host_some_on_gpu(on_gpu, *values, marks=()):
    """Every combination on this machine; on a GPU, which compiles each, some."""
    on_host = [pytest.param("cpu", *case, marks=marks) for case in product(*values)]
    return on_host + [pytest.param("cuda", *case, marks=pytest.mark.gpu) for case in on_gpu]


SIGMOID, ATAN, QUADRATIC, RECT = SURROGATES
NEURONS = all_on_host_some_on_gpu(
    [
        (torch.float64, SIGMOID, (2.0, False), None),
        (torch.float32, ATAN, (2.0, False), None),
        (torch.float32, QUADRATIC, (3.0, False), 0.0),
        (torch.float64, RECT, (2.5, True), -0.3),
        (torch.float32, SIGMOID, (2.5, True), None),
        (torch.float64, ATAN, (3.0, False), -0.3),
    ],
    DTYPES[:2],
    SURROGATES,
    [(2.0, False), (3.0, False), (2.5, True)],
    [None, 0.0, -0.3],
    marks=pytest.mark.slow,
)


@pytest.mark.parametrize(
    ("device", "dtype", "function", "leak", "v_reset"), NEURONS, indirect=["device"]
)
def test_equals_the_plain_step(device, dtype, function, leak, v_reset):
    """Spike, membrane and trace bit for bit over a sequence, the gradient to rounding."""
    torch.manual_seed(0)
    tau, decay_input = leak
    lif = constants(function, tau, decay_input, v_reset)
    v = torch.zeros(7, 143, dtype=dtype, device=device)
    forms = ["packed"] if tau == 2.0 else []
    for form in [*forms, "float32", "bfloat16"]:
        state = state_of(v, form)
        plain = dict(state)
        fired = 0.0
        for _ in range(4):
            x, grad = 3 * torch.randn_like(v), torch.randn_like(v)
            ours = outputs(fused_lif_step, x, grad, state, lif)
            fused_lif_step(x, state, lif, lif.lam)
            theirs = outputs(lif_step, x, grad, plain, lif)
            lif_step(x, plain, lif, lif.lam)
            assert torch.equal(ours[0], theirs[0])
            exact = device == "cpu"  # a GPU's plain division by a constant multiplies instead
            torch.testing.assert_close(
                ours[2:], theirs[2:], **({"rtol": 0, "atol": 0} if exact else {})
            )
            rounding = 100 * torch.finfo(dtype).eps
            torch.testing.assert_close(ours[1], theirs[1], rtol=rounding, atol=rounding)
            assert theirs[1].abs().sum() > 0
            fired += ours[0].mean().item() / 4
        assert 0.1 < fired < 0.9


SCAN_LAYOUTS = ["contiguous", "channels_last", "odd", "time last"]
SCANS = all_on_host_some_on_gpu(
    [
        *product(DTYPES[::3], SCAN_LAYOUTS, ["packed"], [None]),
        (torch.float64, "contiguous", "float32", -0.3),
        (torch.float64, "channels_last", "ndot", None),
        (torch.bfloat16, "contiguous", None, -0.3),
    ],
    DTYPES[::3],
    SCAN_LAYOUTS,
    ["packed", "float32", "ndot", None],
    [None, -0.3],
)


@pytest.mark.parametrize(
    ("device", "dtype", "layout", "form", "v_reset"), SCANS, indirect=["device"]
)
def test_scan_equals_single_steps(device, dtype, layout, form, v_reset):
    """Spikes, traces, the state after them and both gradients, bit for bit."""
    torch.manual_seed(4)
    lif = constants(v_reset=v_reset)
    x_seq = (3 * torch.randn(5, 2, 8, 3, 4, device=device)).to(dtype)
    if layout == "channels_last":
        x_seq = x_seq.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        x_seq = x_seq.unflatten(0, (5, 2))
    elif layout == "odd":
        x_seq = x_seq[:, :, :7, :, 1:].contiguous()
    elif layout == "time last":
        x_seq = x_seq.permute(1, 2, 3, 4, 0).contiguous().permute(4, 0, 1, 2, 3)
    grads = torch.randn_like(x_seq), torch.randn_like(x_seq[0])
    decay, ndot = (0.0, "paper") if form == "ndot" else (0.5, None)
    found = []
    for scan in (False, True):
        x = x_seq.detach().requires_grad_()
        v = torch.zeros_like(x_seq[0])
        torch.manual_seed(5)
        state = state_of(v, None if form == "ndot" else form)
        if form == "ndot":
            state["trace"] = NDOTState(v, v)
        if scan:
            spikes, stored = fused_lif_scan(x, state, lif, decay, ndot)
        else:
            steps = []
            for one in x:
                spike = fused_lif_step(one, state, lif, decay, ndot)
                kept = state["trace"]
                steps.append((spike, kept.trace if form == "ndot" else kept))
            spikes = torch.stack([spike for spike, _ in steps])
            stored = None if form is None else torch.stack([kept for _, kept in steps])
        (grad,) = torch.autograd.grad((spikes, state["v"]), x, grads, retain_graph=True)
        (of_spikes,) = torch.autograd.grad(spikes, x, grads[0])
        assert state["trace"] is None or not any(t.requires_grad for t in [*state["trace"]])
        found.append([spikes, stored, state["v"], state["trace"], grad, of_spikes])
    assert (found[0][4] != found[0][5]).any() and 0.1 < found[0][0].mean() < 0.9
    torch.testing.assert_close(found[1][:4], found[0][:4], rtol=0, atol=0)
    # A scan may keep u[t] where a step keeps v[t]: not the same number once it is rounded.
    rounding = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(found[1][4:], found[0][4:], rtol=rounding, atol=rounding)


OPERATORS = all_on_host_some_on_gpu(
    [(((), 0.0), "ndot"), (((3,), None), "packed")],
    [((), None), ((), 0.0), ((3,), None)],
    ["packed", "float32", "ndot", None],
)


@pytest.mark.parametrize(("device", "call", "form"), OPERATORS, indirect=["device"])
def test_is_an_operator_of_pytorch(device, call, form):
    """PyTorch's own checks: schema, gradient, and what torch.compile knows without running it."""
    steps, v_reset = call
    torch.manual_seed(5)
    v = torch.rand(2, 6, 4, 4, device=device).contiguous(memory_format=torch.channels_last)
    x = torch.rand(*steps, *v.shape, device=device).double().requires_grad_()
    v = v.double()
    stored = None if form is None else torch.rand_like(v)
    if form == "packed":
        stored = (255 * stored).to(torch.uint8)
    memory = torch.rand_like(v) if form == "ndot" else None
    neuron = (2.0, 0.5, 0.8, v_reset, 4.0, False, 0, int(form == "ndot"))
    operator = torch.ops.sj_ottt.lif_scan.default
    torch.library.opcheck(operator, (x, v, stored, memory, *neuron, True))
    torch.library.opcheck(operator, (x.detach(), v, stored, memory, *neuron, False))


def ndot_steps(step, inputs, lif, variant):
    """Spikes, membranes and traces of NDOT over a sequence."""
    v = torch.zeros_like(inputs[0])
    state = {"v": v, "trace": NDOTState(torch.zeros_like(v), torch.zeros_like(v))}
    found = []
    for x in inputs:
        spike = step(x, state, lif, ndot=variant)
        found.append((spike, state["v"], *state["trace"]))
    return [torch.stack(parts) for parts in zip(*found, strict=True)]


def plain_ndot_step(x, state, lif, ndot):
    parts = {"v": state["v"], "trace": None}
    spike = lif_step(x, parts, lif)
    v_before, state["v"] = state["v"], parts["v"]
    constants = {"lam": lif.lam, "v_threshold": lif.v_threshold, "variant": ndot}
    state["trace"] = advance_ndot(state["trace"], spike, v_before, state["v"], **constants)
    return spike


NDOTS = all_on_host_some_on_gpu(
    [(torch.float32, (2.0, None), "paper"), (torch.float64, (3.0, -0.3), "code")],
    DTYPES[:2],
    [(2.0, None), (3.0, -0.3)],
    NDOT_VARIANTS,
)


@pytest.mark.parametrize(("device", "dtype", "leak", "variant"), NDOTS, indirect=["device"])
def test_ndot_trace(device, dtype, leak, variant):
    """Bit for bit over a sequence, with membranes of exactly zero and laid out anyhow."""
    tau, v_reset = leak
    torch.manual_seed(3)
    lif = replace(constants(tau=tau, v_reset=v_reset), v_threshold=1.0)
    inputs = 2 * torch.randn(6, 5, 143, dtype=dtype, device=device)
    inputs[:, :, :40] = inputs[:, :, :40].round()  # membranes that hit zero and the threshold
    for x_seq in (inputs, inputs.transpose(1, 2)):
        ours, theirs = (
            ndot_steps(step, x_seq, lif, variant) for step in (fused_lif_step, plain_ndot_step)
        )
        exact = {"rtol": 0, "atol": 0} if device == "cpu" else {}
        torch.testing.assert_close(ours, theirs, **exact)
        spike, v, values, memory = theirs
        assert 0.1 < spike.mean() < 0.9 and values.isfinite().all()
        assert (v == 0).any() or v_reset
        assert (values != spike).any() and (memory < 0).any() and (memory > 0).any()


FORMS = ["packed", "float32", "float16", "bfloat16", None]
ERRORS = all_on_host_some_on_gpu(
    [
        (torch.float32, SIGMOID, None, "float16"),
        (torch.float16, ATAN, None, "packed"),
        (torch.float16, QUADRATIC, -0.25, "float32"),
        (torch.bfloat16, SIGMOID, None, "packed"),
        (torch.bfloat16, RECT, -0.25, "bfloat16"),
        (torch.bfloat16, ATAN, -0.25, None),
    ],
    DTYPES[1:],
    SURROGATES,
    [None, -0.25],
    FORMS,
    marks=pytest.mark.slow,
)


@pytest.mark.parametrize(
    ("device", "dtype", "function", "v_reset", "form"), ERRORS, indirect=["device"]
)
def test_error_against_float64(device, dtype, function, v_reset, form):
    """At most twice the error that PyTorch's operations make in the same dtype."""
    torch.manual_seed(1)
    lif = constants(function, v_reset=v_reset)
    x, v = (torch.randn(1019, device=device).to(dtype) for _ in range(2))
    x = torch.where((0.5 * v.double() + x.double() - 0.8).abs() < 0.05, 2 * x + 1, x)
    grad = torch.randn(1019, device=device).to(dtype)
    state = state_of(v, form)
    exact = {"v": v.double(), "trace": None}
    if form is not None:
        exact["trace"] = trace.decode(state["trace"], torch.float64)
    reference = outputs(lif_step, x.double(), grad.double(), exact, lif)
    plain = outputs(lif_step, x, grad, state, lif)
    fused = outputs(fused_lif_step, x, grad, state, lif)
    assert 0 < reference[0].mean() < 1 and torch.equal(fused[0].double(), reference[0])
    for a, b, expected in zip(fused, plain, reference, strict=True):
        if expected is not None:
            error, allowed = ((y.double() - expected).abs().max() for y in (a, b))
            scale = expected.abs().max() * torch.finfo(dtype).eps
            assert error <= 2 * allowed + scale / 2


def alternating(x, dims):
    """Dimensions that do not merge: every other one is expanded."""
    shape = [2 - d % 2 for d in range(dims)]
    return x.flatten()[: 2 ** -(-dims // 2)].view(shape).expand([2] * dims)


LAYOUTS = {
    "odd": lambda x: x[:, :3, :5, :7].contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(1, 3),
    "every other": lambda x: x[:, ::2, :, 1::2],
    "misaligned": lambda x: x.flatten()[1:],
    "expanded": lambda x: x[:, :1].expand(-1, 6, -1, -1),
    "flipped order": lambda x: x.permute(3, 0, 2, 1)[1:],
    "one neuron": lambda x: x[:1, :1, :1, :1],
    "scalar": lambda x: x[0, 0, 0, 0],
    "nothing": lambda x: x[:0],
    "eight dimensions": lambda x: alternating(x, 8),
}


@pytest.mark.parametrize("form", ["packed", "float32"])
@pytest.mark.parametrize("grad_layout", ["as x", "expanded", "transposed"])
@pytest.mark.parametrize("view", LAYOUTS.values(), ids=LAYOUTS)
def test_any_strides(device, view, grad_layout, form, monkeypatch):
    """A state, an input and a gradient may each lie in memory as they like; nothing is copied."""
    torch.manual_seed(2)
    x, v = (view(2 * torch.randn(4, 6, 8, 8, device=device).double()) for _ in range(2))
    grad = torch.randn_like(x)
    if grad_layout == "expanded":
        grad = torch.ones((), device=device).double().expand_as(x)
    elif grad_layout == "transposed" and x.dim() > 1:
        grad = grad.transpose(0, 1).contiguous().transpose(0, 1)
    for state in (state_of(v, form), state_of(v.contiguous(), form)):
        theirs = outputs(lif_step, x, grad, state, constants())
        with launches(monkeypatch) as names:
            ours = outputs(fused_lif_step, x, grad, state, constants())
        assert names == (["lif_forward", "lif_backward"] if x.numel() else [])
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
        dense = x.is_contiguous()
        if dense or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)):
            assert ours[0].stride() == x.stride() and ours[1].stride() == x.stride()


def test_refuses_more_dimensions_than_it_can_walk(device):
    x = alternating(torch.randn(1000, device=device), lif_launch.MAX_DIMS + 1)
    with pytest.raises(InputError, match="9 dimensions that do not merge, more than 8"):
        fused_lif_step(x, {"v": torch.zeros_like(x), "trace": None}, constants())


def test_dense_tensors_are_walked_as_one_line(device, monkeypatch):
    x = torch.randn(4, 6, 8, 8, device=device).contiguous(memory_format=torch.channels_last)
    dims, run = [], lif_launch._run
    monkeypatch.setattr(
        lif_launch, "_run", lambda *a: dims.append(int(a[1]["layout"]["dims"][0])) or run(*a)
    )
    outputs(fused_lif_step, x, torch.ones_like(x), state_of(x, "packed"), constants())
    assert dims == [0, 0]
    part = x[:, 1:]  # its spikes are dense again
    outputs(fused_lif_step, part, torch.ones_like(part), state_of(part, None), constants())
    assert dims[2:] == [2, 0]
    x_seq = x.unflatten(0, (2, 2)).requires_grad_()
    spikes, _ = fused_lif_scan(x_seq, state_of(x[:2], "packed"), constants())
    spikes.backward(torch.ones_like(x_seq))
    assert dims[4:] == [0, 0]


NETWORKS = all_on_host_some_on_gpu(
    [(None, "packed", "ottt"), (None, "packed", "ndot"), (0.0, "float32", "sltt")],
    [None, 0.0],
    ["packed", "float32"],
    ["ottt", "sltt", "ndot"],
)


@pytest.mark.parametrize(
    ("device", "v_reset", "trace_dtype", "rule"), NETWORKS, indirect=["device"]
)
def test_a_network_on_the_kernels(device, trace_dtype, v_reset, rule, monkeypatch):
    """Training and evaluation give what backend="torch" gives, by the weights of an update too."""
    results = []
    for backend in ("torch", "cuda", "auto"):
        torch.manual_seed(0)
        node = functools.partial(
            OTTTLIFNode, v_reset=v_reset, backend=backend, trace_dtype=trace_dtype
        )
        net = layer.OTTTSequential(
            layer.WSConv2d(2, 6, 3, padding=1),
            node(),
            layer.AvgPool2d(2),
            layer.WSConv2d(6, 8, 3),
            node(),
            layer.Flatten(),
            layer.Linear(72, 4),
        )
        for conv in net[:4:3]:
            torch.nn.init.constant_(conv.gain, 3.0)
        set_rule(net, rule)
        net = net.to(device).double()
        x_seq = 2 * torch.randn(5, 3, 2, 10, 10, device=device).double()
        target = torch.tensor([0, 1, 3], device=device)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
        with launches(monkeypatch) as names:
            _, logits = learning.train_step(net, optimizer, x_seq, target)
            logits = logits, learning.predict(net, x_seq)
        assert len(names) == (0 if backend == "torch" else 2 * 2 * 5 + 2 * 5)
        results.append((*logits, *(p.grad for p in net.parameters())))
    for values in results[1:]:
        for ours, plain in zip(values, results[0], strict=True):
            assert plain.norm() > 0 and relative_error(ours, plain) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize(
    ("device", "rule"),
    all_on_host_some_on_gpu([("ottt",)], ["ottt", "ndot"]),
    indirect=["device"],
)
def test_a_compiled_network_on_the_kernels_trains_as_the_plain_one(device, rule, monkeypatch):
    x_seq, target = 3 * torch.randn(3, 4, 3, 32, 32, device=device), torch.arange(4, device=device)
    grads = []
    for compiled in (False, True):
        torch._dynamo.reset()
        torch.manual_seed(0)
        neuron = functools.partial(OTTTLIFNode, backend="cuda" if compiled else "torch")
        model = timm.create_model("test_ottt_vgg", num_classes=4, neuron=neuron, rule=rule)
        torch.nn.init.normal_(model.fc.weight)
        model.to(device)
        step = torch.compile(model, backend="aot_eager") if compiled else model
        optimizer = torch.optim.SGD(model.parameters(), 0.0)
        with launches(monkeypatch) as names:
            learning.train_step(step, optimizer, x_seq, target)
            prediction = learning.predict(step, x_seq)
        assert bool(names) == compiled
        grads.append([*(p.grad for p in model.parameters()), prediction])
    assert all(g.norm() > 0 for g in grads[0])
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)
