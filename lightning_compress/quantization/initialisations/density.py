"""Evenly over the sorted weights."""

from __future__ import annotations

import numpy as np

from lightning_compress.quantization.points import Floats, Points


def density(points: Points, clusters: int) -> Floats:
    """As many weights around each: the quantiles of their distribution.

    Han, Mao and Dally, "Deep Compression", ICLR 2016.

    >>> density(Points(np.array([0.0, 1.0, 2.0, 9.0]), np.ones(4), np.ones(4)), 2).tolist()
    [0.5, 5.5]
    """
    share = (np.cumsum(points.masses) - points.masses / 2) / points.masses.sum()
    wanted = (np.arange(clusters) + 0.5) / clusters
    return np.interp(wanted, share, points.values)
