"""Flow of the gradient, before training."""

from torch import Tensor

from lightning_compress.pruning.evidence import Evidence, needs


@needs("hessian_gradient")
def grasp(evidence: Evidence) -> Tensor:
    """``weight * (H g)``: how much of the gradient's squared norm is lost without it (Wang et al. 2020).

    "Picking Winning Tickets Before Training by Preserving Gradient Flow", arXiv:2002.07376. On one batch at the moment
    of the cut; meant for a single cut before the first step.

    >>> import torch
    >>> grasp(Evidence("fc", torch.tensor([2.0, -1.0]), hessian_gradient=torch.tensor([1.0, 3.0]))).tolist()
    [2.0, -3.0]
    """
    return evidence.per_judged(evidence.weight * evidence.need("hessian_gradient"))
