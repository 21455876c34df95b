"""The control."""

import torch
from torch import Tensor

from lightning_compress.pruning.evidence import Evidence


def random(evidence: Evidence) -> Tensor:
    """Uniform random importance: what any other criterion has to beat.

    >>> random(Evidence("fc", torch.zeros(2, 3))).shape
    torch.Size([2, 3])
    """
    return torch.rand(evidence.weight.shape, device=evidence.weight.device)
