"""The losses of a time step: the paper's, and the auxiliary one of FPTT."""

import pytest
import torch
import torch.nn.functional as F

from sj_ottt import learning
from sj_ottt.learning import Divergence


def test_default_loss_is_the_papers():
    logits, target = torch.tensor([[2.0, -1.0], [0.5, 0.0]]), torch.tensor([0, 1])
    cross_entropy = -torch.log_softmax(logits, 1)[[0, 1], target].mean()
    mse = ((logits - torch.eye(2)[target]) ** 2).mean()
    torch.testing.assert_close(
        learning.CrossEntropyMSE(0.05)(logits, target), 0.95 * cross_entropy + 0.05 * mse
    )
    assert learning.CrossEntropyMSE().mse_weight == 0.05


@pytest.mark.parametrize("weight", [0.0, 0.05])
def test_the_loss_of_probabilities_is_the_mean_over_them(weight):
    """Cross entropy is linear in the target; the error's square has its own closed form."""
    torch.manual_seed(0)
    logits = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    target = torch.rand(5, 3, dtype=torch.float64).softmax(1)
    loss_fn = learning.CrossEntropyMSE(weight)
    per_class = torch.stack(
        [F.cross_entropy(logits, torch.full((5,), k), reduction="none") for k in range(3)], 1
    )
    expected = (1 - weight) * (target * per_class).sum(1).mean()
    expected = expected + weight * ((logits - target) ** 2).mean()
    loss = loss_fn(logits, target)
    torch.testing.assert_close(loss, expected)
    (grad,) = torch.autograd.grad(loss, logits)
    closed = (1 - weight) * (logits.softmax(1) - target) / 5 + weight * 2 * (logits - target) / 15
    torch.testing.assert_close(grad, closed)
    classes = torch.tensor([0, 2, 1, 1, 0])
    torch.testing.assert_close(
        loss_fn(logits, F.one_hot(classes).double()), loss_fn(logits, classes)
    )


def test_divergence_to_a_stored_distribution():
    logits = torch.tensor([[1.0, 0.0], [0.5, 2.0]])
    q = torch.tensor([0.25, 0.75])
    expected = (q * (q.log() - logits.log_softmax(1))).sum(1).mean()
    target = torch.tensor([1, 0])
    torch.testing.assert_close(Divergence(q)(logits, target), expected)
    rows = torch.stack((torch.tensor([0.9, 0.1]), q))
    both = (rows[target] * (rows[target].log() - logits.log_softmax(1))).sum(1).mean()
    torch.testing.assert_close(Divergence(rows)(logits, target), both)


def test_divergence_takes_probabilities_of_classes():
    torch.manual_seed(0)
    divergence = Divergence(torch.rand(3, 3).softmax(1))
    logits, target = torch.randn(4, 3), torch.tensor([0, 2, 1, 1])
    soft = divergence(logits, F.one_hot(target, 3).float())
    torch.testing.assert_close(soft, divergence(logits, target))
    assert divergence(logits, torch.full((4, 3), 1 / 3)) != soft
