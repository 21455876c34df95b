"""Weights that make up for those that go: the layer's outputs, not its weights, change least."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_compress.errors import CompressionError
from lightning_compress.pruning.evidence import Evidence

DAMPING = 0.01
"""Share of the mean second moment that is added to each: directions that the data do not show stay as they are."""
POLISH = 20
"""Steps of conjugate gradients after the column-by-column update, which lets only later columns make up for earlier."""


def damped(moments: Tensor) -> Tensor:
    """Second moments in float64 that can be inverted: inputs that are always zero count as independent.

    Raises:
        CompressionError: they are not finite.
    """
    result = moments.double().clone()
    if not bool(torch.isfinite(result).all()):
        raise CompressionError("The second moments are not finite. Look for NaN or infinite values in the data.")
    diagonal = result.diagonal()
    diagonal[diagonal <= 0] = 1.0
    diagonal.add_(DAMPING * float(diagonal.mean()))
    return result


def inverse_moments(moments: Tensor) -> Tensor:
    """Inverse of the damped second moments, float64.

    >>> round(inverse_moments(torch.eye(2))[0, 0].item(), 6)
    0.990099
    """
    return torch.cholesky_inverse(torch.linalg.cholesky(damped(moments)))


@torch.no_grad()
def refit(evidence: Evidence, keep: Tensor) -> Tensor:
    """The weights that are left, fitted anew: SparseGPT's update (Frantar and Alistarh 2023, arXiv:2301.00774).

    Column by column; what a weight's removal costs, the columns still to come make up for. Then all that are left
    together, by a few conjugate gradients towards the least squares solution. An output that would come out worse than
    without keeps its weights.

    Args:
        evidence: with ``moments``.
        keep: of the weight's shape, False where it goes.

    Returns:
        Of the weight's shape, zero where ``keep`` is False.

    >>> moments = torch.tensor([[1.0, 0.9], [0.9, 1.0]])
    >>> layer = Evidence("fc", torch.tensor([[1.0, 1.0]]), moments=moments)
    >>> bool(refit(layer, torch.tensor([[False, True]]))[0, 1] > 1.8)
    True
    """
    weight, moments = evidence.weight.flatten(1).double(), evidence.need("moments").to(evidence.weight.device)
    stays = keep.flatten(1)
    inverse = torch.linalg.cholesky(inverse_moments(moments), upper=True)
    fitted = weight.clone()
    for column in range(weight.shape[1]):
        error = torch.where(stays[:, column], 0.0, fitted[:, column]) / inverse[column, column]
        fitted[:, column:] -= error[:, None] * inverse[column, column:]
    plain, fitted = weight * stays, _polished(fitted * stays, weight, stays, damped(moments))
    worse = output_error(weight - fitted, moments) > output_error(weight - plain, moments)
    return torch.where(worse[:, None], plain, fitted).float().view_as(evidence.weight)


def _polished(fitted: Tensor, weight: Tensor, stays: Tensor, moments: Tensor) -> Tensor:
    """Conjugate gradients for each output on the entries that are left."""
    residual = ((weight - fitted) @ moments) * stays
    direction, norm = residual, residual.square().sum(dim=1, keepdim=True)
    tiny = torch.finfo(norm.dtype).tiny
    for _ in range(POLISH):
        image = (direction @ moments) * stays
        step = norm / (direction * image).sum(dim=1, keepdim=True).clamp_min(tiny)
        fitted, residual = fitted + step * direction, residual - step * image
        former, norm = norm, residual.square().sum(dim=1, keepdim=True)
        direction = residual + norm / former.clamp_min(tiny) * direction
    return fitted


def output_error(difference: Tensor, moments: Tensor) -> Tensor:
    """Mean squared change of each output, shape (outputs,), for a change of the weights (outputs, n)."""
    return ((difference @ moments.double()) * difference).sum(dim=1)
