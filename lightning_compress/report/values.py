"""The values of a weight tensor: how they spread, and how few of them there are."""

from __future__ import annotations

from math import ceil, log2

import torch
from torch import Tensor

from lightning_compress.report.report import Histogram

BINS = 48
MOST_SHARED = 256
"""With more distinct values than that a tensor's values are not shared."""
MOST_LINES = 64
"""With more distinct values than that a histogram has no lines for them."""
PROBE = 4096


def width_of(tensor: Tensor) -> int:
    """Bits of an entry that is not zero: of its index among the distinct values, or, if they are too many, its dtype's.

    >>> width_of(torch.tensor([0.5, -0.5, 0.0, 1.0])), width_of(torch.arange(1000.0))
    (2, 32)
    """
    values = distinct_values(tensor)
    return 8 * tensor.element_size() if values is None else ceil(log2(max(len(values), 1)))


def distinct_values(tensor: Tensor) -> Tensor | None:
    """The distinct values that are not zero, in rising order; None where there are more than 256 of them."""
    flat = tensor.detach().flatten()
    if len(torch.unique(flat[:PROBE])) > MOST_SHARED + 1:  # most tensors are told from a few of their entries
        return None
    values: Tensor = torch.unique(flat)
    values = values[values != 0]
    return values if len(values) <= min(MOST_SHARED, max(flat.numel() // 4, 4)) else None


def histogram(tensor: Tensor) -> Histogram | None:
    """Counts of the entries that are not zero in 48 bins; None where none are left, or one is not finite.

    >>> histogram(torch.tensor([[0.0, 1.0], [1.0, 3.0]])).codebook
    (1.0, 3.0)
    """
    flat = tensor.detach().flatten().float().cpu()
    kept = flat[flat != 0]
    if not len(kept) or not bool(kept.isfinite().all()):
        return None
    low, high = float(kept.min()), float(kept.max())
    if low == high:
        low, high = low - abs(low) / 2, high + abs(high) / 2
    counts = tuple(int(count) for count in torch.histc(kept, BINS, low, high))
    values = distinct_values(flat)
    lines = () if values is None or len(values) > MOST_LINES else tuple(float(value) for value in values)
    return Histogram(low, high, counts, lines)
