"""Size of the weight against all larger ones of its layer."""

import torch
from torch import Tensor

from lightning_compress.pruning.evidence import Evidence


def lamp(evidence: Evidence) -> Tensor:
    """Squared weight over the sum of all squares that are not smaller (Lee et al. 2021, arXiv:2010.07611).

    The largest of each layer has the score 1, so ``allocation="global"`` never empties a layer. For neurons with their
    squared norms.

    >>> import torch
    >>> lamp(Evidence("fc", torch.tensor([1.0, -2.0]))).tolist()
    [0.20000000298023224, 1.0]
    """
    return remaining_share(evidence.per_judged(evidence.weight.square()))


def remaining_share(values: Tensor) -> Tensor:
    """Each value over the sum of all that are not smaller; 0 of nothing but zeros."""
    ordered, order = values.flatten().double().sort(stable=True)
    at_least = ordered.flip(0).cumsum(0).flip(0)
    shares = torch.empty_like(ordered).index_copy_(0, order, ordered / at_least.clamp_min(1e-300))
    return shares.view_as(values).float()
