"""First-order change of the loss."""

from torch import Tensor

from lightning_compress.pruning.evidence import Evidence, needs


@needs("product")
def taylor(evidence: Evidence) -> Tensor:
    """Mean of ``|weight * gradient|`` over the training steps: the first-order change of the loss without the weight.

    Molchanov et al. 2017 and 2019 (arXiv:1611.06440, 1906.10771). Summed over the weights of a neuron: a BatchNorm
    behind it makes the signed sum zero.

    >>> import torch
    >>> taylor(Evidence("fc", torch.zeros(2, 2), product=torch.ones(2, 2), of_neurons=True)).tolist()
    [2.0, 2.0]
    """
    return evidence.per_judged(evidence.need("product"))
