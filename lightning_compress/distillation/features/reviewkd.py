"""Knowledge review."""

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate, mse_loss

from lightning_compress.distillation.adapters import Fusion, adapted
from lightning_compress.distillation.precision import full_precision


@adapted(Fusion)
@full_precision
def reviewkd(students: tuple[Tensor, ...], teachers: tuple[Tensor, ...]) -> Tensor:
    """Each stage of the teacher is compared, at several resolutions, with the student's stages up to it.

    Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021, arXiv:2104.09044 (hierarchical context loss).
    Tap several layers, shallow first: ``Tap(("a", "b"), ("a", "b"), loss="reviewkd")``.

    Args:
        students: fused maps (N, channels, height, width) of all stages.
        teachers: maps of as many stages.

    >>> maps = (torch.rand(1, 3, 4, 4),)
    >>> reviewkd(maps, maps).item()
    0.0
    """
    losses = [_hierarchical(one, two) for one, two in zip(students, teachers, strict=True)]
    return torch.stack(losses).sum()


def _hierarchical(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared differences at full size and at 4, 2 and 1 positions a side, each counting half of the former."""
    if student.shape[2:] != teacher.shape[2:]:
        student = interpolate(student, size=teacher.shape[2:], mode="nearest")
    loss, weight, total = mse_loss(student, teacher), 1.0, 1.0
    for size in (4, 2, 1):
        if size < teacher.shape[2]:
            weight /= 2
            pooled = [adaptive_avg_pool2d(maps, size) for maps in (student, teacher)]
            loss = loss + weight * mse_loss(pooled[0], pooled[1])
            total += weight
    return loss / total
