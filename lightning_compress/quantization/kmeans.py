"""Weight sharing: k-means in one dimension, with an exact zero apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from lightning_compress.errors import CompressionError
from lightning_compress.quantization.points import Floats, Points, points_of
from lightning_compress.registry import resolve

INITIALISATIONS = "lightning_compress.quantization.initialisations"
MOST_CLUSTERS = 256
STEPS = 100

Initialisation: TypeAlias = Callable[[Points, int], Floats]
"""From points and a number to at most that many centroids; like those in ``quantization/initialisations``."""


@dataclass(frozen=True)
class Codebook:
    """A tensor as a few shared values.

    Attributes:
        levels: the shared values without the zero, shape (k,), rising, in the tensor's dtype.
        assignment: int16, shaped like the tensor: 0 where it is exactly zero, else the number of the level, from 1.
    """

    levels: Tensor
    assignment: Tensor

    @property
    def values(self) -> Tensor:
        """The tensor.

        >>> Codebook(torch.tensor([-1.0, 2.0]), torch.tensor([[0, 2]], dtype=torch.int16)).values
        tensor([[0., 2.]])
        """
        return spread(self.levels, self.assignment)


def spread(levels: Tensor, assignment: Tensor) -> Tensor:
    """Levels and an exact zero put where they belong."""
    table = torch.cat([levels.new_zeros(1), levels])
    return table[assignment.long()]


def shared_values(weights: Tensor, clusters: int) -> Codebook | None:
    """The codebook of a tensor that shares at most ``clusters`` values already, as one from a file does; else None.

    Raises:
        CompressionError: a number of clusters out of range.

    >>> shared_values(torch.tensor([0.0, 0.5, -1.0, 0.5]), 2).levels
    tensor([-1.0000,  0.5000])
    >>> shared_values(torch.tensor([0.0, 0.5, -1.0, 0.25]), 3) is None
    True
    """
    check_clusters(clusters)
    weights = weights.detach()
    alive = weights[weights != 0]
    levels: Tensor = torch.unique(alive)  # rising
    if not bool(levels.isfinite().all()) or not 0 < len(levels) <= min(clusters, alive.numel() - 1):
        return None
    assignment = torch.zeros(weights.shape, dtype=torch.int16, device=weights.device)
    assignment[weights != 0] = (torch.searchsorted(levels, alive) + 1).to(torch.int16)
    return Codebook(levels, assignment)


def share_weights(
    weights: Tensor, clusters: int, *, init: str | Initialisation = "optimal", importance: Tensor | None = None
) -> Codebook:
    """The weights that are not zero as ``clusters`` shared values of least squared error; exact zeros stay.

    Args:
        weights: floating-point, any shape.
        clusters: 1 to 256; fewer where there are fewer distinct weights.
        init: name of a function in ``quantization/initialisations`` ("kmeans++" too) or any such callable.
        importance: shaped like the weights, above 0: what a squared error of each costs; None: 1.

    Raises:
        CompressionError: a number of clusters out of range, NaN or infinity.

    >>> share_weights(torch.tensor([0.0, 1.0, 1.5, -3.0]), 2).values
    tensor([ 0.0000,  1.2500,  1.2500, -3.0000])
    """
    check_clusters(clusters)
    alive = weights.detach() != 0
    if not bool(alive.any()):
        return Codebook(weights.new_zeros(0), torch.zeros(weights.shape, dtype=torch.int16, device=weights.device))
    points = points_of(weights[alive], None if importance is None else importance[alive])
    levels = centroids(points, clusters, init)
    shared = torch.unique(torch.from_numpy(levels).to(weights.device, weights.dtype))
    shared = shared[shared != 0] if bool((shared != 0).any()) else shared
    return Codebook(shared, nearest(weights, shared))


def centroids(points: Points, clusters: int, init: str | Initialisation = "optimal") -> Floats:
    """Centroids after Lloyd's steps.

    >>> centroids(Points(np.array([0.0, 1.0, 5.0]), np.ones(3), np.ones(3)), 2, "linear").tolist()
    [0.5, 5.0]
    """
    if len(points) <= clusters:
        return points.values
    name = init.replace("++", "_plus_plus") if isinstance(init, str) else init
    start = resolve(name, INITIALISATIONS)(points, clusters)
    return lloyd(points, np.asarray(start, dtype=np.float64))


def lloyd(points: Points, start: Floats, steps: int = STEPS) -> Floats:
    """Centroids moved to the means of their points until they rest; those without points are left out.

    Points are sorted, so a cluster is an interval, and its mean a difference of running sums.
    """
    mass = np.concatenate([[0.0], np.cumsum(points.masses)])
    moment = np.concatenate([[0.0], np.cumsum(points.masses * points.values)])
    levels = np.unique(start)
    for _ in range(steps):
        edges = np.searchsorted(points.values, (levels[1:] + levels[:-1]) / 2)
        edges = np.unique(np.concatenate([[0], edges, [len(points)]]))
        moved = np.diff(moment[edges]) / np.diff(mass[edges])
        if len(moved) == len(levels) and np.array_equal(moved, levels):
            break
        levels = moved
    return levels


def nearest(weights: Tensor, levels: Tensor) -> Tensor:
    """Numbers of the nearest levels, from 1, and 0 for exact zeros; int16, shaped like the weights.

    >>> nearest(torch.tensor([0.0, 0.4, -2.0]), torch.tensor([1.0, -1.0])).tolist()
    [0, 1, 2]
    """
    rising, order = levels.sort()
    place = by_edges(weights, (rising[1:] + rising[:-1]) / 2)
    if torch.equal(rising, levels):
        return place
    return torch.cat([order.new_zeros(1), order + 1]).to(torch.int16)[place.long()]


def by_edges(weights: Tensor, edges: Tensor) -> Tensor:
    """Number of the interval between ``edges`` (rising) that each weight lies in, from 1; 0 for exact zeros."""
    flat = weights.detach()
    place = torch.bucketize(flat, edges.to(flat.dtype), out_int32=True).add_(1)
    return place.masked_fill_(flat == 0, 0).to(torch.int16)


def check_clusters(clusters: object) -> int:
    """Refuse a number of clusters that no file holds.

    Raises:
        CompressionError: not a whole number from 1 to 256.
    """
    if isinstance(clusters, bool) or not isinstance(clusters, int) or not 1 <= clusters <= MOST_CLUSTERS:
        raise CompressionError(
            f"clusters={clusters!r} is not a whole number from 1 to {MOST_CLUSTERS}; 32 make five bits a weight."
        )
    return clusters
