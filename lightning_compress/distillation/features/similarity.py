"""Similarity-preserving distillation."""

from torch import Tensor
from torch.nn.functional import normalize

from lightning_compress.distillation.precision import full_precision


@full_precision
def similarity(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared difference of the two matrices of similarities between samples of the batch, divided by N^2.

    Tung and Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019, arXiv:1907.09682. Widths may differ.

    >>> import torch
    >>> features = torch.rand(4, 6)
    >>> similarity(2 * features, features).item() < 1e-10
    True
    """
    found, expected = (normalize(rows @ rows.T, dim=1) for rows in (student.flatten(1), teacher.flatten(1)))
    return (found - expected).square().mean()
