"""Size of the gradient."""

from torch import Tensor

from lightning_compress.pruning.evidence import Evidence, needs


@needs("gradient")
def gradient(evidence: Evidence) -> Tensor:
    """Absolute value of the mean gradient: how much the loss minds a change of the weight; summed for a neuron.

    >>> import torch
    >>> gradient(Evidence("fc", torch.zeros(2), gradient=torch.tensor([-2.0, 1.0]))).tolist()
    [2.0, 1.0]
    """
    return evidence.per_judged(evidence.need("gradient").abs())
