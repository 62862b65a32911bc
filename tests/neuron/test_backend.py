"""The switch of a model's neurons to a backend."""

import pytest
import torch
from torch import nn

from sj_ottt import InputError
from sj_ottt._ops import lif_gpu
from sj_ottt.neuron import OTTTLIFNode, OTTTParametricLIFNode, SLTTLIFNode, set_backend


def backends(model):
    return [m.backend for m in model.modules() if isinstance(m, OTTTLIFNode)]


def test_auto_is_the_default_and_set_backend_changes_all():
    model = nn.Sequential(OTTTLIFNode(), nn.Sequential(SLTTLIFNode()), nn.Linear(2, 2))
    assert backends(model) == ["auto", "auto"]
    assert set_backend(model, "torch") is model
    assert backends(model) == ["torch", "torch"]


def test_refuses_by_name_and_changes_nothing(monkeypatch):
    model = nn.Sequential(OTTTLIFNode(), OTTTParametricLIFNode())
    with pytest.raises(
        InputError, match='"gpu" is unknown: use one of torch, cuda, cupy, cpp, auto'
    ):
        set_backend(model, "gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="PyTorch sees no CUDA GPU"):
        set_backend(model, "cuda")
    monkeypatch.setattr(lif_gpu, "missing", lambda *_: None)
    with pytest.raises(InputError, match="no kernel for OTTTParametricLIFNode"):
        set_backend(model, "cuda")
    assert backends(model) == ["auto", "auto"]
    with pytest.raises(InputError, match="Linear has no neuron with a kernel"):
        set_backend(nn.Linear(2, 2), "cuda")
