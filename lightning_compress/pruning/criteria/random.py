"""The control."""

import torch
from torch import Tensor

from lightning_compress.pruning.evidence import Evidence


def random(evidence: Evidence) -> Tensor:
    """Uniform random importance of each weight or neuron: what any other criterion has to beat.

    >>> random(Evidence("fc", torch.zeros(2, 3))).shape
    torch.Size([2, 3])
    """
    shape = evidence.weight.shape[:1] if evidence.of_neurons else evidence.weight.shape
    return torch.rand(shape, device=evidence.weight.device)
