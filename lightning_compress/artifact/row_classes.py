"""Rows of like density together: each class then has a code of its own for the gaps between its entries."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

MAX_CLASSES = 8
BINS = 64
BITS_PER_CLASS = 160.0
"""What another class costs: its header and its table."""


def row_classes(entries: NDArray[np.int64], columns: int) -> tuple[float, NDArray[np.uint8]]:
    """The best division of rows into at most 8 classes by how many entries are in each.

    An optimal split of the sorted rows by dynamic programming, for the bits that an ideal code of each class's mask
    would take.

    Args:
        entries: number of entries that are not zero in each row, shape (rows,).
        columns: length of a row.

    Returns:
        The bits, what the classes themselves take included, and each row's class, the emptiest first.

    >>> row_classes(np.array([1, 900, 2, 880]), 1000)[1].tolist()
    [0, 1, 0, 1]
    """
    rows = len(entries)
    order = np.argsort(entries, kind="stable")
    edges = np.unique(np.linspace(0, rows, min(rows, BINS) + 1).astype(np.int64))
    total = np.concatenate([[0], np.cumsum(entries[order])])[edges]
    ones = (total[None, :] - total[:, None]).astype(np.float64)
    size = ((edges[None, :] - edges[:, None]) * columns).astype(np.float64)
    cost = mask_bits(np.maximum(size, 0), np.clip(ones, 0, None)) + BITS_PER_CLASS
    cost[np.tri(len(edges), dtype=bool)] = np.inf
    best, origins = cost[0], []
    choices = [(float(best[-1]), 1)]
    for number in range(2, min(MAX_CLASSES, len(edges) - 1) + 1):
        sums = best[:, None] + cost
        origins.append(sums.argmin(0))
        best = sums.min(0)
        choices.append((float(best[-1]) + rows * float(np.log2(number)), number))
    bits, number = min(choices)
    classes, end = np.zeros(rows, np.uint8), len(edges) - 1
    for step in reversed(range(1, number)):
        start = int(origins[step - 1][end])
        classes[order[edges[start] : edges[end]]] = step
        end = start
    return bits, classes


def mask_bits(size: ArrayLike, ones: ArrayLike) -> NDArray[np.float64]:
    """Entropy of masks of ``size`` entries, of which ``ones`` are set.

    >>> float(mask_bits(8, 4))
    8.0
    """
    size, ones = np.asarray(size, np.float64), np.asarray(ones, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = ones / size
        bits: NDArray[np.float64] = -size * (share * np.log2(share) + (1 - share) * np.log2(1 - share))
    return np.where(np.isnan(bits), 0.0, bits)
