"""How many exits in a row agree."""

from __future__ import annotations

from torch import Tensor


def patience(logits: Tensor, earlier: Tensor) -> Tensor:
    """The number of exits in a row, this one included, that give the answer of this one; at least 1.

    Zhou et al., "BERT Loses Patience", NeurIPS 2020, arXiv:2006.04152.

    Args:
        logits: (N, classes).
        earlier: (N, exits before): the classes that the earlier exits gave, the first exit first.

    >>> import torch
    >>> patience(torch.tensor([[0.0, 1.0], [0.0, 1.0]]), torch.tensor([[1, 0], [0, 1]])).tolist()
    [1.0, 2.0]
    """
    agree = (earlier.flip(1) == logits.argmax(dim=1, keepdim=True)).to(logits.dtype)
    return 1 + agree.cumprod(dim=1).sum(dim=1)
