"""How clearly the first answer leads the second."""

from __future__ import annotations

from torch import Tensor


def margin(logits: Tensor, earlier: Tensor) -> Tensor:
    """The difference of the two largest softmax probabilities, in [0, 1].

    Args:
        logits: (N, classes).
        earlier: (N, exits before), not used.

    >>> import torch
    >>> margin(torch.tensor([[1.0, 1.0, -9.0]]), torch.zeros(1, 0)).item()
    0.0
    """
    best = logits.softmax(dim=1).topk(2, dim=1).values
    return best[:, 0] - best[:, 1]
