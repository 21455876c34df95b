"""Where the weight is going."""

from torch import Tensor

from lightning_compress.pruning.evidence import Evidence, needs


@needs("movement")
def movement(evidence: Evidence) -> Tensor:
    """Sum of ``-weight * gradient`` over the fit: weights that move towards zero go (Sanh et al. 2020).

    "Movement Pruning", arXiv:2005.07683. Summed over the weights of a neuron.

    >>> import torch
    >>> movement(Evidence("fc", torch.ones(2), movement=torch.tensor([-1.0, 2.0]))).tolist()
    [-1.0, 2.0]
    """
    return evidence.per_judged(evidence.need("movement"))
