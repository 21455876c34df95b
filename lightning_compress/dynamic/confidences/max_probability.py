"""How probable the answer is."""

from __future__ import annotations

from torch import Tensor


def max_probability(logits: Tensor, earlier: Tensor) -> Tensor:
    """The largest softmax probability, in [0, 1].

    Args:
        logits: (N, classes).
        earlier: (N, exits before), not used.

    >>> import torch
    >>> max_probability(torch.tensor([[0.0, 0.0]]), torch.zeros(1, 0)).item()
    0.5
    """
    return logits.softmax(dim=1).amax(dim=1)
