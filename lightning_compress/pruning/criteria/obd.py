"""Second-order change of the loss, from the Hessian's diagonal."""

from torch import Tensor

from lightning_compress.pruning.evidence import Evidence, needs


@needs("hessian_diagonal")
def obd(evidence: Evidence) -> Tensor:
    """Half the squared weight times the Hessian's diagonal (LeCun et al. 1989, "Optimal Brain Damage").

    The diagonal is Hutchinson's estimate on one batch, its absolute value taken: near a minimum it is not negative.

    >>> import torch
    >>> obd(Evidence("fc", torch.tensor([2.0, 1.0]), hessian_diagonal=torch.tensor([1.0, -6.0]))).tolist()
    [2.0, 3.0]
    """
    return evidence.per_judged(0.5 * evidence.weight.square() * evidence.need("hessian_diagonal").abs())
