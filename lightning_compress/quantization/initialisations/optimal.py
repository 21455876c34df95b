"""The best there are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lightning_compress.quantization.points import Floats, Points

MOST = 8192
"""Points that the dynamic programme looks at; of more, neighbours are merged, and Lloyd's steps do the rest."""


def optimal(points: Points, clusters: int) -> Floats:
    """Centroids of least squared error, by dynamic programming over the sorted points.

    The best ``k`` clusters of the first ``j`` points end in one that begins where the best ``k - 1`` clusters of those
    before end. Where it begins never moves left as ``j`` grows, so the middle ``j`` halves the search for all others:
    O(k n log n) (Gronlund et al., "Fast Exact k-Means, k-Medians and Bregman Divergence Clustering in 1D", 2017), all
    ``j`` of one depth at once. Exact up to 8,192 points.

    >>> optimal(Points(np.array([0.0, 1.0, 8.0, 9.0]), np.ones(4), np.ones(4)), 2).tolist()
    [0.5, 8.5]
    """
    few = points.thinned(MOST)
    centre = float(np.average(few.values, weights=few.masses))
    values = few.values - centre  # sums of squares lose no digits to a common offset
    sums = np.zeros((3, len(few) + 1))
    sums[:, 1:] = np.cumsum([few.masses, few.masses * values, few.masses * values**2], axis=1)
    begins = _begins(sums, min(clusters, len(few)))
    edges = [len(few)]
    for row in reversed(begins):
        edges.append(int(row[edges[-1] - 1]))
    starts = np.array(edges[:0:-1])
    mass = np.diff(sums[0][[*starts, len(few)]])
    means: Floats = np.diff(sums[1][[*starts, len(few)]]) / mass + centre
    return means


def _begins(sums: Floats, clusters: int) -> list[NDArray[np.int64]]:
    """For each number of clusters up to ``clusters``: where the last of them begins, by its last point."""
    count = sums.shape[1] - 1
    everything = np.arange(count)
    best = _error(sums, np.zeros(count, np.int64), everything)
    begins = [np.zeros(count, np.int64)]
    for number in range(1, clusters):
        best, where = _next(sums, best, number)
        begins.append(where)
    return begins


def _error(sums: Floats, first: NDArray[np.int64], last: NDArray[np.int64]) -> Floats:
    """Squared error of the points from ``first`` to ``last`` around their mean."""
    mass, moment, square = (row[last + 1] - row[first] for row in sums)
    error: Floats = square - moment * moment / mass
    return error


def _next(sums: Floats, before: Floats, number: int) -> tuple[Floats, NDArray[np.int64]]:
    """Least errors with one cluster more, and where it begins; ``number`` clusters lie before it."""
    count = len(before)
    best, where = np.zeros(count), np.arange(count)  # fewer points than clusters: each its own
    left, right = np.array([number]), np.array([count - 1])
    low, high = left, right  # between where the last cluster can begin
    while len(left):
        middle = (left + right) // 2
        best[middle], at = _search(sums, before, middle, low, np.minimum(high, middle))
        where[middle] = at
        before_it, behind_it = left < middle, middle < right
        low, high = np.concatenate([low[before_it], at[behind_it]]), np.concatenate([at[before_it], high[behind_it]])
        middle_left, middle_right = middle[before_it] - 1, middle[behind_it] + 1
        left = np.concatenate([left[before_it], middle_right])
        right = np.concatenate([middle_left, right[behind_it]])
    return best, where


def _search(
    sums: Floats, before: Floats, middle: NDArray[np.int64], first: NDArray[np.int64], last: NDArray[np.int64]
) -> tuple[Floats, NDArray[np.int64]]:
    """For each of ``middle`` the best beginning between ``first`` and ``last``, both included."""
    lengths = last - first + 1
    starts = np.cumsum(lengths) - lengths
    begin = np.arange(int(lengths.sum())) - np.repeat(starts - first, lengths)
    error = before[begin - 1] + _error(sums, begin, np.repeat(middle, lengths))
    least = np.minimum.reduceat(error, starts)
    hits = np.flatnonzero(error == np.repeat(least, lengths))
    owner = np.searchsorted(starts, hits, side="right") - 1
    _, one = np.unique(owner, return_index=True)
    return least, begin[hits[one]]
