"""The range that keeps the distribution."""

import torch
from torch import Tensor

from lightning_compress.quantization.grid import Grid
from lightning_compress.quantization.observation import Observation, needs_histogram

CANDIDATES = 50


@needs_histogram
def entropy(seen: Observation, grid: Grid) -> tuple[Tensor, Tensor]:
    """The share of the full range with the smallest Kullback-Leibler divergence between the clipped histogram and what
    the grid's levels make of it (Migacz, "8-bit Inference with TensorRT", 2017).
    """
    counts, edges = seen.histogram
    centres, last = (edges[..., 1:] + edges[..., :-1]) / 2, grid.high - grid.low
    best = torch.full_like(seen.low, float("inf"))
    low, high = seen.low.clone(), seen.high.clone()
    for share in torch.linspace(1.0, 1 / CANDIDATES, CANDIDATES).tolist():
        scale, zero_point = grid.parameters(seen.low * share, seen.high * share)
        code = (centres / scale[..., None]).round() + zero_point[..., None] - grid.low
        inside = (code >= 0) & (code <= last)
        code = code.clamp(0, last).long()
        clipped = counts * inside
        outside = counts * ~inside
        reference = clipped + _at_the_ends(outside, inside)
        levels = torch.zeros(*counts.shape[:-1], last + 1, dtype=counts.dtype, device=counts.device)
        held, used = (
            levels.scatter_add(-1, code, clipped),
            levels.scatter_add(-1, code, ((clipped > 0) * 1.0).to(counts)),
        )
        spread = held.gather(-1, code) / used.gather(-1, code).clamp(min=1) * (clipped > 0)
        divergence = _divergence(reference, spread)
        better = divergence < best
        best = torch.where(better, divergence, best)
        low, high = torch.where(better, seen.low * share, low), torch.where(better, seen.high * share, high)
    return low, high


def _at_the_ends(outside: Tensor, inside: Tensor) -> Tensor:
    """What is clipped, counted in the outermost bins of the range."""
    place = torch.arange(inside.shape[-1], device=inside.device)
    first = torch.where(inside, place, inside.shape[-1] - 1).amin(-1, keepdim=True)
    last = torch.where(inside, place, 0).amax(-1, keepdim=True)
    ends = torch.zeros_like(outside)
    ends.scatter_add_(-1, first, (outside * (place < first)).sum(-1, keepdim=True))
    return ends.scatter_add_(-1, last, (outside * (place > last)).sum(-1, keepdim=True))


def _divergence(reference: Tensor, candidate: Tensor) -> Tensor:
    p = reference / reference.sum(-1, keepdim=True).clamp(min=1)
    q = (candidate / candidate.sum(-1, keepdim=True).clamp(min=1)).clamp(min=1e-9)
    return torch.where(p > 0, p * (p / q).log(), 0.0).sum(-1)
