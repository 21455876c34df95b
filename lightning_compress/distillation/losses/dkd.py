"""Decoupled soft targets."""

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax, logsigmoid, one_hot

from lightning_compress.distillation.precision import full_precision, reads


@reads("classes")
@full_precision
def dkd(
    student: Tensor,
    teacher: Tensor,
    temperature: float,
    labels: Tensor,
    *,
    target_weight: float = 1.0,
    other_weight: float = 8.0,
) -> Tensor:
    """Soft targets in two parts: how probable the true class is, and how the other classes compare.

    Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, arXiv:2203.08679. In plain soft targets the second part
    is weighed by the teacher's doubt, which hides it where the teacher is sure.

    Args:
        student: logits (N, C).
        teacher: logits (N, C).
        temperature: T, above 0.
        labels: true classes (N,).
        target_weight: alpha of the paper.
        other_weight: beta of the paper; 8 there for CIFAR-100.

    >>> logits = torch.tensor([[2.0, 0.0, 1.0]])
    >>> dkd(logits, logits, 4.0, torch.tensor([0])).item()
    0.0
    """
    is_target = one_hot(labels, student.shape[-1]).bool()
    true = _binary_divergence(student / temperature, teacher / temperature, is_target)
    expected = log_softmax((teacher / temperature).masked_fill(is_target, -torch.inf), dim=-1)
    found = log_softmax((student / temperature).masked_fill(is_target, -torch.inf), dim=-1)
    shape = (len(student), student.shape[-1] - 1)
    others = kl_div(
        found[~is_target].view(shape), expected[~is_target].view(shape), reduction="batchmean", log_target=True
    )
    return (target_weight * true + other_weight * others) * temperature**2


def _binary_divergence(student: Tensor, teacher: Tensor, is_target: Tensor) -> Tensor:
    """KL of "the true class or another", batch mean."""
    margins = []
    for logits in (student, teacher):
        others = logits.masked_fill(is_target, -torch.inf).logsumexp(dim=-1)
        margins.append(logits[is_target] - others)
    found, expected = margins
    chance = expected.sigmoid()
    yes = chance * (logsigmoid(expected) - logsigmoid(found))
    no = (1 - chance) * (logsigmoid(-expected) - logsigmoid(-found))
    return (yes + no).mean()
