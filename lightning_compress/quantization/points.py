"""Weights as points on a line, few enough to be clustered at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_compress.errors import CompressionError

Floats = NDArray[np.float64]

FEW = 2**16
"""So many weights are taken one by one; of more, those that agree in the leading bits of a float32 are one point."""

DROPPED_BITS = 12
PIECE = 2**20


@dataclass(frozen=True)
class Points:
    """Distinct values, in order, and how much each of them counts.

    Attributes:
        values: shape (n,), float64, rising.
        masses: what a squared error of each costs: the number of its weights, or their importance.
        counts: the number of weights at each.
    """

    values: Floats
    masses: Floats
    counts: Floats

    def __len__(self) -> int:
        return len(self.values)

    def thinned(self, most: int) -> Points:
        """At most about ``most`` points; neighbours are merged where they lie densest, as good quantizers allow.

        The spacing follows the cube root of the density (Panter and Dite 1951): no place loses more than another.
        """
        if len(self) <= most:
            return self
        gaps = np.gradient(self.values)
        share = np.cumsum(self.masses ** (1 / 3) * gaps ** (2 / 3))
        group = np.minimum((share / share[-1] * most).astype(np.int64), most - 1)
        starts = np.flatnonzero(np.diff(group, prepend=-1))
        masses = np.add.reduceat(self.masses, starts)
        means = np.add.reduceat(self.masses * self.values, starts) / masses
        return Points(means, masses, np.add.reduceat(self.counts, starts))


def points_of(weights: Tensor, importance: Tensor | None = None) -> Points:
    """The points of a tensor.

    Up to 65,536 weights are taken exactly. Of more, those are merged that agree in sign, exponent and the eleven
    leading bits of the mantissa: a relative width of 2**-11, which is no loss beside that of a cluster.

    Args:
        weights: any shape, at least one entry.
        importance: what a squared error of each weight costs, likewise, above 0; None: 1.

    Raises:
        CompressionError: nothing there, or NaN or infinity.

    >>> points_of(torch.tensor([2.0, -1.0, 2.0])).counts.tolist()
    [1.0, 2.0]
    """
    flat = weights.detach().flatten().cpu()
    if not flat.numel():
        raise CompressionError("There is no weight to cluster.")
    if not bool(torch.isfinite(flat.sum())) and not bool(flat.isfinite().all()):
        raise CompressionError("NaN or infinite weights cannot be clustered. Look at the learning rate.")
    masses = None if importance is None else importance.detach().flatten().cpu().double().numpy()
    if flat.numel() <= FEW:
        values, place = np.unique(flat.double().numpy(), return_inverse=True)
        counts = np.bincount(place).astype(np.float64)
        return Points(values, counts if masses is None else np.bincount(place, masses).astype(np.float64), counts)
    return _binned(flat.float().numpy(), masses)


def _binned(flat: NDArray[np.float32], masses: Floats | None) -> Points:
    bins = 2 ** (32 - DROPPED_BITS)
    counts, mass, moment = np.zeros(bins), np.zeros(bins), np.zeros(bins)
    for start in range(0, len(flat), PIECE):
        piece = flat[start : start + PIECE]
        place = _place(piece)
        counts += np.bincount(place, minlength=bins)
        if masses is None:
            moment += np.bincount(place, piece, bins)
        else:
            mass += np.bincount(place, masses[start : start + PIECE], bins)
            moment += np.bincount(place, masses[start : start + PIECE] * piece, bins)
    mass = counts if masses is None else mass
    used = np.flatnonzero(counts)
    return Points(moment[used] / mass[used], mass[used], counts[used])


def _place(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """Leading bits of floating-point numbers, in the order of the numbers."""
    bits = values.view(np.int32)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    place: NDArray[np.int64] = ((ordered >> DROPPED_BITS) + 2 ** (31 - DROPPED_BITS)).astype(np.int64)
    return place
