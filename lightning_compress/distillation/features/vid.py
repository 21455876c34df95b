"""Variational information distillation."""

from torch import Tensor

from lightning_compress.distillation.adapters import WithVariance, adapted
from lightning_compress.distillation.precision import full_precision


@adapted(WithVariance)
@full_precision
def vid(mean: Tensor, teacher: Tensor, variance: Tensor) -> Tensor:
    """Negative log-likelihood (up to a constant) of the teacher's features under a Gaussian around the student's.

    Ahn et al., "Variational Information Distillation for Knowledge Transfer", CVPR 2019, arXiv:1904.05835: a lower
    bound of the mutual information.

    Args:
        mean: the student's adapted features (N, channels), (N, length, channels) or (N, channels, height, width).
        teacher: of the same shape.
        variance: learned, one for each channel.

    >>> import torch
    >>> vid(torch.zeros(1, 2), torch.ones(1, 2), torch.ones(2)).item()
    0.5
    """
    if mean.dim() > 3:
        variance = variance.view(-1, *[1] * (mean.dim() - 2))
    return ((teacher - mean).square() / variance + variance.log()).mean() / 2
