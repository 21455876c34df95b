"""Values instead of classes."""

from torch import Tensor
from torch.nn.functional import mse_loss

from lightning_compress.distillation.precision import full_precision, reads


@reads("values")
@full_precision
def regression(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of what student and teacher predict.

    Args:
        student: any shape (N, ...).
        teacher: of the same shape.

    >>> import torch
    >>> regression(torch.tensor([[1.0], [3.0]]), torch.tensor([[1.0], [1.0]])).item()
    2.0
    """
    return mse_loss(student, teacher)
