"""Distance to the other neurons of the layer."""

import torch
from torch import Tensor

from lightning_compress.pruning.evidence import Evidence, needs, relative


@needs("of_neurons")
def geometric_median(evidence: Evidence) -> Tensor:
    """Mean distance to the layer's other neurons: near the geometric median means replaceable (He et al. 2019).

    "Filter Pruning via Geometric Median", arXiv:1811.00250. Relative to the group's mean, so that layers can be
    compared.

    >>> weight = torch.tensor([[0.0], [1.0], [5.0]])
    >>> geometric_median(Evidence("fc", weight, of_neurons=True)).argsort().tolist()
    [1, 0, 2]
    """
    rows = evidence.weight.flatten(1)
    return relative(torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").mean(dim=1))
