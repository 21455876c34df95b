"""Second-order change of the loss, from gradients alone."""

from torch import Tensor

from lightning_compress.pruning.evidence import Evidence, needs


@needs("squared_gradient")
def fisher(evidence: Evidence) -> Tensor:
    """Half the squared weight times its empirical Fisher information, the mean squared gradient of the batches.

    Optimal Brain Damage (LeCun et al. 1989) with the Fisher information for the Hessian, as Theis et al. 2018 do
    (arXiv:1801.05787).

    >>> import torch
    >>> fisher(Evidence("fc", torch.tensor([2.0, 1.0]), squared_gradient=torch.tensor([1.0, 4.0]))).tolist()
    [2.0, 2.0]
    """
    return evidence.per_judged(0.5 * evidence.weight.square() * evidence.need("squared_gradient"))
