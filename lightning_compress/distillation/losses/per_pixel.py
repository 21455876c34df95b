"""Soft targets at every position of a picture."""

from torch import Tensor
from torch.nn.functional import interpolate

from lightning_compress.distillation.losses.kd import kd
from lightning_compress.distillation.precision import full_precision, reads


@reads("pixels")
@full_precision
def per_pixel(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """Soft targets over the classes of each pixel, averaged over pixels and batch: for segmentation.

    Liu et al., "Structured Knowledge Distillation for Semantic Segmentation", CVPR 2019, arXiv:1903.04197.

    Args:
        student: logits (N, C, height, width).
        teacher: logits (N, C, ...); of another height or width they are interpolated.
        temperature: T, above 0.

    >>> import torch
    >>> per_pixel(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 2, 2)).item()
    0.0
    """
    if teacher.shape[2:] != student.shape[2:]:
        teacher = interpolate(teacher, size=student.shape[2:], mode="bilinear", align_corners=False)
    found, expected = (logits.movedim(1, -1).flatten(0, -2) for logits in (student, teacher))
    return kd(found, expected, temperature)
