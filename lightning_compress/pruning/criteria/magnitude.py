"""Size of the weights."""

from torch import Tensor

from lightning_compress.pruning.evidence import Evidence


def magnitude(evidence: Evidence) -> Tensor:
    """Absolute value of each weight; a neuron is worth the L2 norm of its weights (Han et al. 2015, arXiv:1506.02626).

    >>> import torch
    >>> magnitude(Evidence("fc", torch.tensor([[3.0, -4.0]]))).tolist()
    [[3.0, 4.0]]
    """
    return evidence.weight.abs()
