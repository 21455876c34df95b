"""The mean of the logits."""

import torch
from torch import Tensor


def mean_logits(logits: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """Weighted mean over the members that know the class (members, N, C) -> (N, C).

    >>> mean_logits(torch.tensor([[[2.0, 0.0]], [[0.0, 0.0]]]), torch.tensor([0.5, 0.5]), 4.0).tolist()
    [[1.0, 0.0]]
    """
    if len(logits) == 1:
        return logits[0]
    shares = weights.view(-1, *[1] * (logits.dim() - 1)) * logits.isfinite()
    total = (shares * logits.nan_to_num(neginf=0.0)).sum(dim=0)
    known = shares.sum(dim=0)
    return torch.where(known > 0, total / known.clamp(min=torch.finfo(total.dtype).tiny), -torch.inf)
