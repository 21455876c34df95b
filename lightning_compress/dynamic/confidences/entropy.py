"""How far the answer is from a mere guess."""

from __future__ import annotations

from math import log

from torch import Tensor


def entropy(logits: Tensor, earlier: Tensor) -> Tensor:
    """One minus the entropy of the softmax as a share of the largest possible, in [0, 1].

    Teerapittayanon et al., "BranchyNet", ICPR 2016, arXiv:1709.01686.

    Args:
        logits: (N, classes).
        earlier: (N, exits before), not used.

    >>> import torch
    >>> entropy(torch.tensor([[0.0, 0.0], [0.0, 50.0]]), torch.zeros(2, 0)).tolist()
    [0.0, 1.0]
    """
    logs = logits.log_softmax(dim=1)
    return 1 + (logs.exp() * logs).sum(dim=1) / log(max(logits.shape[1], 2))
