"""Far from one another."""

from __future__ import annotations

import numpy as np
import torch

from lightning_compress.quantization.points import Floats, Points


def kmeans_plus_plus(points: Points, clusters: int) -> Floats:
    """One after the other, each drawn with a chance that grows as the squared distance to the nearest so far.

    Arthur and Vassilvitskii, "k-means++: The Advantages of Careful Seeding", SODA 2007. Draws from torch's random
    state.

    >>> sorted(kmeans_plus_plus(Points(np.array([0.0, 9.0]), np.ones(2), np.ones(2)), 2).tolist())
    [0.0, 9.0]
    """
    chance, chosen = points.masses.copy(), list[float]()
    for _ in range(min(clusters, len(points))):
        total = np.cumsum(chance)
        if total[-1] <= 0:
            break
        place = np.searchsorted(total, float(torch.rand(())) * total[-1], side="right")
        chosen.append(points.values[min(place, len(points) - 1)])
        distance = points.masses * (points.values - chosen[-1]) ** 2
        chance = distance if len(chosen) == 1 else np.minimum(chance, distance)
    return np.sort(np.array(chosen))
