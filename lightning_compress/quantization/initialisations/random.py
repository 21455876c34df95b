"""Some of the weights themselves."""

from __future__ import annotations

import numpy as np
import torch

from lightning_compress.quantization.points import Floats, Points


def random(points: Points, clusters: int) -> Floats:
    """Weights drawn at random without replacement (Forgy); draws from torch's random state.

    >>> set(random(Points(np.array([0.0, 1.0]), np.ones(2), np.ones(2)), 2).tolist()) == {0.0, 1.0}
    True
    """
    drawn = torch.multinomial(torch.from_numpy(points.masses[: 2**24]), min(clusters, len(points)))
    return np.sort(points.values[drawn.numpy()])
