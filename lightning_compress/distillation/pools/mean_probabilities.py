"""The mean of the probabilities."""

import torch
from torch import Tensor


def mean_probabilities(logits: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """Weighted mean of the softened probabilities: a mixture, which keeps each member's second thoughts.

    >>> pooled = mean_probabilities(torch.tensor([[[9.0, 0.0]], [[0.0, 9.0]]]), torch.tensor([0.75, 0.25]), 1.0)
    >>> [round(p, 2) for p in pooled.softmax(-1)[0].tolist()]
    [0.75, 0.25]
    """
    if len(logits) == 1:
        return logits[0]
    mixed = (logits / temperature).log_softmax(dim=-1)
    known = logits.isfinite()
    shares = weights.view(-1, *[1] * (logits.dim() - 1)) * known
    logs = torch.where(known, mixed, -torch.inf) + (weights / weights.sum()).log().view(-1, *[1] * (logits.dim() - 1))
    return (logs.logsumexp(dim=0) - shares.sum(dim=0).log()) * temperature
