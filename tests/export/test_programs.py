"""ONNX files and files of torch.export give what the network gives, for any batch."""

import io
import json
from functools import partial

import pytest
import timm
import torch
from torch import nn

from sj_ottt import InputError, layer
from sj_ottt.export import AllSteps, to_onnx, to_torch
from sj_ottt.learning import predict
from sj_ottt.neuron import LTCRecurrent, OTTTLIFNode


def build(name, **kwargs):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3, in_chans=2, **kwargs)
    nn.init.normal_(model.fc.weight)
    if model.feedback is not None:
        nn.init.normal_(model.feedback.synapse.weight, std=0.3)
    return model, 2 * torch.randn(3, 5, 2, 16, 16)


NETWORKS = {
    "vgg": partial(build, "test_ottt_vgg"),
    "feedback": partial(build, "test_ottt_vggf"),
    "membrane": partial(build, "test_ottt_vgg", readout="membrane"),
    "hard reset": partial(build, "test_ottt_vgg", neuron=partial(OTTTLIFNode, v_reset=0.2)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_all_steps_in_one_file_are_the_prediction(name):
    model, x_seq = NETWORKS[name]()
    expected = predict(model, x_seq)
    assert expected.std() > 1e-2
    file = to_torch(model, x_seq[0, :1], 3, {"classes": ["a", "b", "c"]})
    extra = {"sj_ottt.json": ""}
    program = torch.export.load(io.BytesIO(file), extra_files=extra).module()
    torch.testing.assert_close(program(x_seq), expected, rtol=1e-5, atol=1e-5)
    assert len(program(x_seq[:, :1])) == 1
    said = json.loads(extra["sj_ottt.json"])
    assert said["classes"] == ["a", "b", "c"] and said["steps"] == 3
    assert said["prediction"] == ("last" if name == "membrane" else "sum")


@pytest.mark.slow
def test_an_onnx_file_of_all_steps_is_the_prediction():
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    model, x_seq = NETWORKS["vgg"]()
    file = to_onnx(model, x_seq[0, :1], 3, {"classes": ["a", "b", "c"]})
    session = onnxruntime.InferenceSession(file)
    for batch in (x_seq, x_seq[:, :1]):
        (found,) = session.run(None, {"x_seq": batch.numpy()})
        torch.testing.assert_close(
            torch.from_numpy(found), predict(model, batch), rtol=1e-5, atol=1e-5
        )
    said = session.get_modelmeta().custom_metadata_map
    assert json.loads(said["classes"]) == ["a", "b", "c"] and said["steps"] == "3"
    names = {node.op_type for node in __import__("onnx").load_from_string(file).graph.node}
    assert "Sqrt" not in names  # the standardization is done


@pytest.mark.slow
def test_an_onnx_file_of_one_step_names_its_state_and_where_it_starts():
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    model, x_seq = NETWORKS["hard reset"]()
    session = onnxruntime.InferenceSession(to_onnx(model, x_seq[0, :1]))
    starts = json.loads(session.get_modelmeta().custom_metadata_map["start"])
    assert starts == pytest.approx(dict.fromkeys(["layer1.1.v", "layer2.2.v", "layer3.2.v"], 0.2))
    x, *kept = (given.name for given in session.get_inputs())
    assert kept == [*starts]
    shapes = {given.name: given.shape for given in session.get_inputs()}
    state = {
        name: torch.full((5, *shapes[name][1:]), value).numpy() for name, value in starts.items()
    }
    total = torch.zeros(5, 3)
    for step in x_seq:
        out, *new = session.run(None, {x: step.numpy(), **state})
        total += torch.from_numpy(out)
        state = dict(zip(kept, new, strict=True))
    torch.testing.assert_close(total, predict(model, x_seq), rtol=1e-5, atol=1e-5)


def test_what_no_graph_of_all_steps_can_do_is_refused():
    drawn = nn.Sequential(LTCRecurrent(6, 8), nn.Linear(8, 3))
    with pytest.raises(InputError, match=r"0\.\w+ is drawn at random before the first step"):
        AllSteps(drawn, torch.randn(2, 6), 3)
    AllSteps(nn.Sequential(LTCRecurrent(6, 8, start="zero"), nn.Linear(8, 3)), torch.randn(2, 6), 3)
    with pytest.raises(InputError, match="steps=0: give at least 1"):
        AllSteps(drawn, torch.randn(2, 6), 0)
    with pytest.raises(InputError, match="build its synapse with bias=False"):
        to_torch(_with_bias(), torch.randn(2, 4), 2)


def _with_bias():
    net = layer.OTTTSequential(layer.Linear(4, 4), OTTTLIFNode(), layer.Linear(4, 4), OTTTLIFNode())
    model = nn.Module()
    model.net, model.forward = net, net.forward
    model.feedback = layer.Feedback(layer.Linear(4, 4)).connect(source=net[3], target=net[1])
    return model


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(InputError, match=r"ONNX needs the package onnxscript.*sj-ottt\[export\]"):
        to_onnx(nn.Linear(2, 2), torch.zeros(1, 2))
