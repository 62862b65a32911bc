"""Compiled models: no graph break, and the same gradients and predictions as plain ones."""

import pytest
import timm
import torch
from torch import nn

from sj_ottt import set_rule
from sj_ottt.learning import predict, train_step
from tests.networks import largest_error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "update", "name", "backend"),
    [
        # Without the compiler's second half, which takes as long again; a VGG goes through it.
        ("ottt", "accumulate", "test_ottt_nf_resnet", "eager"),
        ("ndot", "online", "test_ottt_vgg", "aot_eager"),
        ("bptt", "accumulate", "test_ottt_vgg", "aot_eager"),
    ],
)
def test_a_compiled_model_trains_and_predicts_as_the_plain_one(rule, update, name, backend):
    """`fullgraph=True` refuses breaks."""
    torch.manual_seed(1)
    x_seq, target = 3 * torch.randn(2, 4, 3, 32, 32).double(), torch.arange(4)
    found = []
    for compiled in (False, True):
        torch._dynamo.reset()
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=4).double()
        for parameter in model.parameters():
            if parameter.dim() == 0:
                nn.init.ones_(parameter)  # an NF-ResNet's branches start at zero
        nn.init.normal_(model.fc.weight)
        set_rule(model, rule)
        step = torch.compile(model, fullgraph=True, backend=backend) if compiled else model
        before = {k: p.detach().clone() for k, p in model.named_parameters()}
        train_step(step, torch.optim.SGD(model.parameters(), 0.1), x_seq, target, update=update)
        moved = {k: p.detach() - before[k] for k, p in model.named_parameters()}
        found.append(moved | {"logits": predict(step, x_seq)})
    assert all(change.norm() > 0 for change in found[0].values())
    assert largest_error(found[1], found[0]) < 1e-10
