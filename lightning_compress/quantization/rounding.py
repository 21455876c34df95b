"""Rounding to a grid so that a layer's outputs, not its weights, change least: from second moments of what it reads."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_compress.quantization.grid import Grid

DAMPING = 0.01
STEPS = 300


def output_error(difference: Tensor, moments: Tensor) -> Tensor:
    """The mean squared change of each output, shape (rows,), for a change of the weights (rows, n)."""
    return ((difference.double() @ moments.double()) * difference.double()).sum(1)


def nearest(weight: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """Each weight to its nearest level."""
    return (weight / scale).round().clamp(grid.low, grid.high) * scale


@torch.no_grad()
def gptq(weight: Tensor, moments: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """Column by column; what rounding one column costs, the columns still to come make up for.

    Frantar et al., "GPTQ", ICLR 2023. Zeros stay zeros; a row that would come out worse is rounded to nearest.

    Args:
        weight: shape (rows, n).
        moments: E[x xT], shape (n, n).
        scale: shape (rows, 1) or (rows, n).
        grid: symmetric.

    >>> moments = torch.tensor([[1.0, 0.99], [0.99, 1.0]])
    >>> gptq(torch.tensor([[0.4, 0.4]]), moments, torch.tensor([[1.0]]), Grid(4)).sum().item()
    1.0
    """
    dtype, count = weight.dtype, weight.shape[1]
    left, curvature = weight.double().clone(), moments.double().clone()
    dead = curvature.diagonal() <= 0
    curvature.diagonal()[dead] = 1
    curvature.diagonal().add_(DAMPING * curvature.diagonal().mean())
    order = curvature.diagonal().argsort(descending=True)
    left, curvature = left[:, order], curvature[order][:, order]
    ordered = scale.double().expand_as(weight)[:, order]
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(curvature)), upper=True)
    alive = (weight != 0)[:, order]
    rounded = torch.zeros_like(left)
    for column in range(count):
        rounded[:, column] = nearest(left[:, column], ordered[:, column], grid) * alive[:, column]
        error = (left[:, column] - rounded[:, column]) / inverse[column, column]
        left[:, column + 1 :] -= error[:, None] * inverse[column, column + 1 :]
    return _better(rounded[:, order.argsort()].to(dtype), weight, moments, scale, grid)


def adaround(weight: Tensor, moments: Tensor, scale: Tensor, grid: Grid, *, steps: int = STEPS) -> Tensor:
    """Up or down, learned for all weights of the layer together by a relaxation that hardens.

    Nagel et al., "Up or Down? Adaptive Rounding", ICML 2020, with the layer's error taken from second moments. Zeros
    stay zeros; a row that would come out worse is rounded to nearest.

    Args:
        weight: shape (rows, n).
        moments: E[x xT], shape (n, n).
        scale: shape (rows, 1) or (rows, n).
        grid: symmetric.
        steps: of Adam.
    """
    with torch.enable_grad():
        moments, target = moments.to(weight.dtype), weight.detach() / scale
        floor, alive = target.floor(), weight.detach() != 0
        share = ((target - floor).clamp(0.01, 0.99) + 0.1) / 1.2
        logits = torch.log(share / (1 - share)).requires_grad_()
        optimizer = torch.optim.Adam([logits], lr=0.02)
        size = output_error(nearest(weight, scale, grid) - weight, moments).mean().clamp(min=1e-20)
        for step in range(steps):
            up = (torch.sigmoid(logits) * 1.2 - 0.1).clamp(0, 1) * alive
            change = ((floor + up).clamp(grid.low, grid.high) - target) * scale
            error = ((change @ moments) * change).sum(1).mean() / size
            hardness = max(2.0, 20.0 * (1 - step / steps))
            decided = (1 - (2 * up - 1).abs().pow(hardness)).mean() if step > steps // 5 else 0.0
            optimizer.zero_grad()
            (error + decided).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    rounded = (floor + (logits.detach() > 0)).clamp(grid.low, grid.high) * scale * alive
    return _better(rounded.detach(), weight.detach(), moments, scale, grid)


def _better(rounded: Tensor, weight: Tensor, moments: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """Row by row whichever of ``rounded`` and nearest changes the outputs less."""
    plain = nearest(weight, scale, grid)
    worse = output_error(rounded - weight, moments) > output_error(plain - weight, moments)
    return torch.where(worse[:, None], plain, rounded)
