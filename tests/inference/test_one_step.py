"""One time step with explicit state: equal to stepping the model, exported or not."""

import copy

import pytest
import timm
import torch
from torch import nn

from sj_ottt import InputError, layer
from sj_ottt.inference.one_step import OneStep
from sj_ottt.learning import reset_state
from sj_ottt.neuron import LTCRecurrent, OTTTLIFNode


class WithFeedback(nn.Module):
    def __init__(self, bias=False):
        super().__init__()
        self.one = layer.OTTTSequential(layer.Linear(6, 8), OTTTLIFNode(v_threshold=0.3))
        self.two = layer.OTTTSequential(layer.Linear(8, 8), OTTTLIFNode(3.0, v_threshold=0.1))
        self.feedback = layer.Feedback(layer.Linear(8, 8, bias=bias))
        self.feedback.connect(source=self.two[1], target=self.one[1])
        self.head = layer.Linear(8, 3)

    def forward(self, x):
        return self.head(self.two(self.one(x)))


def _liquid():
    return nn.Sequential(LTCRecurrent(6, 8, start="zero"), nn.Linear(8, 3))


def _vgg():
    return timm.create_model("test_ottt_vgg", num_classes=3)


CASES = {"feedback": (WithFeedback, (6,)), "liquid": (_liquid, (6,)), "vgg": (_vgg, (3, 32, 32))}


def build(name):
    torch.manual_seed(0)
    make, shape = CASES[name]
    return make().eval(), 3 * torch.randn(5, 2, *shape)


@pytest.mark.parametrize("name", CASES)
def test_one_step_is_a_step_of_the_model_exported_or_not(name):
    model, x_seq = build(name)
    with torch.no_grad():
        expected = [model(x) for x in x_seq]
    reset_state(model)
    assert torch.stack(expected).std(0).max() > 1e-3  # the state matters
    one_step = OneStep(model, x_seq[0])
    states = one_step.initial_states(x_seq[0])
    assert len(states) == len(one_step.state_names) >= 2
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(
        one_step,
        (x_seq[0], *states),
        dynamic_shapes=({0: batch}, tuple({0: batch} for _ in states)),
        strict=False,
    ).module()
    for run in (one_step, program):
        state = copy.deepcopy(states)
        for x, y in zip(x_seq, expected, strict=True):
            out, *state = run(x, *state)
            torch.testing.assert_close(out, y, rtol=1e-6, atol=1e-6)
    more = torch.cat((x_seq[0], x_seq[1], x_seq[2]))
    out, *_ = program(more, *one_step.initial_states(more))
    assert out.shape == (6, 3)


def test_tracing_and_export_of_a_stateful_model_are_refused():
    model, x_seq = build("feedback")
    with pytest.raises(InputError, match=r"OTTTLIFNode keeps a state.*OneStep\(model, example\)"):
        torch.jit.trace(model, x_seq[0])
    with pytest.raises(InputError, match=r"OTTTLIFNode keeps a state.*OneStep\(model, example\)"):
        torch.export.export(model, (x_seq[0],), strict=False)
    with pytest.raises(InputError, match="1 states were given, not 3"):
        OneStep(model, x_seq[0])(x_seq[0], x_seq[0])
    with pytest.raises(InputError, match="build its synapse with bias=False"):
        OneStep(WithFeedback(bias=True), x_seq[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_one_step_in_onnx_is_a_step_of_the_model(name, tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    model, x_seq = build(name)
    one_step = OneStep(model, x_seq[0])
    states = one_step.initial_states(x_seq[0])
    torch.onnx.export(one_step, (x_seq[0], *states), dynamo=True).save(tmp_path / "step.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "step.onnx")
    names = [given.name for given in session.get_inputs()]
    found = [state.numpy() for state in states]
    for x in x_seq:
        y, *states = one_step(x, *states)
        out, *found = session.run(None, dict(zip(names, [x.numpy(), *found], strict=True)))
        torch.testing.assert_close(torch.from_numpy(out), y, rtol=1e-5, atol=1e-5)
