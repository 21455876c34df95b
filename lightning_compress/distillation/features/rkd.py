"""Relational distillation."""

import torch
from torch import Tensor
from torch.nn.functional import normalize, smooth_l1_loss

from lightning_compress.distillation.precision import full_precision


@full_precision
def rkd(student: Tensor, teacher: Tensor, *, distance: float = 1.0, angle: float = 2.0) -> Tensor:
    """Huber losses between the mutual distances, and the angles of all triplets, of a batch's samples.

    Park et al., "Relational Knowledge Distillation", CVPR 2019, arXiv:1904.05068. Widths may differ; the memory for
    angles grows with N^3.

    Args:
        student: features (N, ...), flattened.
        teacher: features (N, ...), flattened.
        distance: weight of the distances.
        angle: weight of the angles.

    >>> features = torch.rand(4, 6)
    >>> rkd(2 * features, features).item() < 1e-6
    True
    """
    student, teacher = student.flatten(1), teacher.flatten(1)
    distances = smooth_l1_loss(_distances(student), _distances(teacher))
    angles = smooth_l1_loss(_angles(student), _angles(teacher))
    return distance * distances + angle * angles


def _distances(rows: Tensor) -> Tensor:
    """Between all pairs, divided by the mean over pairs of two samples."""
    squares = (rows[:, None] - rows[None]).square().sum(dim=-1)
    apart = ~torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    found = squares.clamp(min=1e-12).sqrt() * apart
    return found / found[apart].mean().clamp(min=1e-12) if len(rows) > 1 else found


def _angles(rows: Tensor) -> Tensor:
    """Cosines at each sample between the directions to all pairs of others."""
    directions = normalize(rows[None] - rows[:, None], dim=-1)
    return directions @ directions.transpose(1, 2)
