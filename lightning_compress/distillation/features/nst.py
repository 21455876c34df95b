"""Neuron selectivity transfer."""

from torch import Tensor
from torch.nn.functional import normalize

from lightning_compress.distillation.adapters import from_rows, to_positions
from lightning_compress.distillation.precision import full_precision
from lightning_compress.errors import CompressionError


@full_precision
def nst(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared maximum mean discrepancy of the channels' activation patterns under the kernel (x . y)^2.

    Huang and Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", 2017, arXiv:1707.01219.
    Numbers of channels may differ.

    Args:
        student: maps (N, channels, height, width).
        teacher: maps; other positions are pooled or interpolated.

    Raises:
        CompressionError: features that are not maps.

    >>> import torch
    >>> maps = torch.rand(2, 3, 4, 4)
    >>> nst(2 * maps, maps).item() < 1e-6
    True
    """
    if min(student.dim(), teacher.dim()) < 4:
        raise CompressionError(
            f"Neuron selectivity needs maps, not features of shape {tuple(student.shape)}: "
            'tap a convolution, or use loss="similarity".'
        )
    student = from_rows(to_positions(student, teacher), teacher)
    found, expected = (normalize(maps.flatten(2), dim=2) for maps in (student, teacher))
    return _kernel(found, found) + _kernel(expected, expected) - 2 * _kernel(found, expected)


def _kernel(one: Tensor, two: Tensor) -> Tensor:
    return (one @ two.transpose(1, 2)).square().mean()
