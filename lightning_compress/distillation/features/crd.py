"""Contrastive representation distillation."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from lightning_compress.distillation.adapters import Embeddings, adapted
from lightning_compress.distillation.precision import full_precision


@adapted(Embeddings)
@full_precision
def crd(student: Tensor, teacher: Tensor, *, temperature: float = 0.1) -> Tensor:
    """A sample's two embeddings shall find each other among all of the batch, in both directions.

    Tian, Krishnan and Isola, "Contrastive Representation Distillation", ICLR 2020, arXiv:1910.10699; the negatives are
    those of the batch (InfoNCE) instead of a memory of the whole set.

    Args:
        student: embeddings (N, size).
        teacher: embeddings (N, size).
        temperature: tau of the paper.

    >>> round(crd(torch.eye(2), torch.eye(2), temperature=1.0).item(), 4) # log(1 + exp(-1))
    0.3133
    """
    alike = normalize(student, dim=1) @ normalize(teacher, dim=1).T / temperature
    own = torch.arange(len(alike), device=alike.device)
    return (cross_entropy(alike, own) + cross_entropy(alike.T, own)) / 2
