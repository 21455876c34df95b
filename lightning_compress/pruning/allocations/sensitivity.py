"""Layers whose loss of weights costs little give more."""

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from lightning_compress.pruning.evidence import needs
from lightning_compress.pruning.seats import share_out
from lightning_compress.pruning.sensitivity import Sensitivity

LEAST = 0.01
"""Of the largest cost of an entry, what each costs at least: a scan on little data finds layers that cost nothing."""
TAIL = 0.25
"""Exponent by which the cost rises beyond the largest share of the scan: no weight is emptied early."""


@needs("curves")
def sensitivity(scores: Mapping[str, Tensor], drop: int, *, curves: Sensitivity) -> dict[str, int]:
    """The counts at which one more entry costs the same everywhere, by the curves of a scan of each layer alone.

    Args:
        scores: by tensor.
        drop: number of entries in all.
        curves: what :func:`lightning_compress.pruning.sensitivity` found.

    >>> import torch
    >>> curves = Sensitivity({"a": {0.5: 1.0, 0.9: 9.0}, "b": {0.5: 0.1, 0.9: 0.9}}, {"a": 100, "b": 100})
    >>> counts = sensitivity({"a": torch.zeros(100), "b": torch.zeros(100)}, 100, curves=curves)
    >>> counts["a"] < 50 < counts["b"]
    True
    """
    sizes = {name: score.numel() for name, score in scores.items()}
    slopes = {name: _slopes(curves.costs[name], curves.sizes[name]) for name in sizes}
    largest = max(float(costs[-1]) for _, costs in slopes.values()) or 1.0
    marginal = {name: (places, np.maximum(costs, LEAST * largest)) for name, (places, costs) in slopes.items()}

    def share(name: str, level: float) -> float:
        places, costs = marginal[name]
        price = largest * level / (1 - level)
        if price <= costs[-1]:
            return float(np.interp(price, np.concatenate([[0.0], costs]), np.concatenate([[0.0], places])))
        return float(1 - (1 - places[-1]) * (costs[-1] / price) ** TAIL)

    return share_out(sizes, share, drop)


def _slopes(costs: Mapping[float, float], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Rising shares, and what one more entry costs there, never falling."""
    points = sorted(costs.items())
    shares = np.array([0.0, *(share for share, _ in points)])
    totals = np.maximum.accumulate(np.array([0.0, *(cost for _, cost in points)]))
    slopes = np.maximum.accumulate(np.diff(totals) / np.diff(shares)) / size
    return (shares[1:] + shares[:-1]) / 2, slopes
