"""The range with the smallest error."""

import torch
from torch import Tensor

from lightning_compress.quantization.grid import Grid
from lightning_compress.quantization.observation import Observation, needs_histogram

CANDIDATES = 50


@needs_histogram
def mse(seen: Observation, grid: Grid) -> tuple[Tensor, Tensor]:
    """The share of the full range whose grid has the smallest mean squared error on the histogram."""
    counts, edges = seen.histogram
    centres = (edges[..., 1:] + edges[..., :-1]) / 2
    best = torch.full_like(seen.low, float("inf"))
    low, high = seen.low.clone(), seen.high.clone()
    for share in torch.linspace(1.0, 1 / CANDIDATES, CANDIDATES).tolist():
        scale, zero_point = grid.parameters(seen.low * share, seen.high * share)
        scale, zero_point = scale[..., None], zero_point[..., None]
        code = ((centres / scale).round() + zero_point).clamp(grid.low, grid.high)
        error = ((((code - zero_point) * scale) - centres).square() * counts).sum(-1)
        better = error < best
        best = torch.where(better, error, best)
        low, high = torch.where(better, seen.low * share, low), torch.where(better, seen.high * share, high)
    return low, high
