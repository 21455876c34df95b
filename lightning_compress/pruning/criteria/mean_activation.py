"""Mean output of a neuron."""

from torch import Tensor

from lightning_compress.pruning.evidence import Evidence, needs


@needs("mean")
def mean_activation(evidence: Evidence) -> Tensor:
    """Absolute value of a neuron's mean output, at the next layer's input (Molchanov et al. 2017, arXiv:1611.06440).

    >>> import torch
    >>> mean_activation(Evidence("fc", torch.zeros(2, 1), mean=torch.tensor([0.5, -2.0]))).tolist()
    [0.5, 2.0]
    """
    return evidence.need("mean").abs()
