"""Hints."""

from torch import Tensor
from torch.nn.functional import mse_loss

from lightning_compress.distillation.adapters import ToTeacherShape, adapted
from lightning_compress.distillation.precision import full_precision


@adapted(ToTeacherShape)
@full_precision
def hint(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the adapted features and the teacher's.

    Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, arXiv:1412.6550.

    >>> import torch
    >>> hint(torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0, 1.0]])).item()
    2.0
    """
    return mse_loss(student, teacher)
