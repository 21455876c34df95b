"""Size of the weights, summed up."""

from torch import Tensor

from lightning_compress.pruning.evidence import Evidence, relative


def magnitude_l1(evidence: Evidence) -> Tensor:
    """Absolute value of each weight; a neuron is worth the mean of its weights' (Li et al. 2017, arXiv:1608.08710).

    For neurons relative to the group's mean, as with ``magnitude``, so that layers can be compared.

    >>> import torch
    >>> magnitude_l1(Evidence("fc", torch.tensor([[3.0, -5.0], [1.0, -3.0]]), of_neurons=True)).tolist()
    [1.3333333730697632, 0.6666666865348816]
    """
    if not evidence.of_neurons:
        return evidence.weight.abs()
    return relative(evidence.per_judged(evidence.weight.abs()))
