"""Probabilistic knowledge transfer."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from lightning_compress.distillation.precision import full_precision


@full_precision
def pkt(student: Tensor, teacher: Tensor) -> Tensor:
    """Divergence between the two distributions over a sample's neighbours in the batch, by cosine similarity.

    Passalis and Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018,
    arXiv:1803.10837. Widths may differ.

    >>> features = torch.rand(4, 6)
    >>> pkt(2 * features, features).item() < 1e-6
    True
    """
    found, expected = _neighbours(student.flatten(1)), _neighbours(teacher.flatten(1))
    return (expected * (expected.log() - found.log())).sum(dim=1).mean()


def _neighbours(rows: Tensor) -> Tensor:
    unit = normalize(rows, dim=1)
    chances = ((unit @ unit.T + 1) / 2).clamp(min=1e-7)
    alone = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    chances = chances.masked_fill(alone, 1e-7)
    return chances / chances.sum(dim=1, keepdim=True)
