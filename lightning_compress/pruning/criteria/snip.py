"""Sensitivity of the connection, before training."""

from torch import Tensor

from lightning_compress.pruning.evidence import Evidence, needs


@needs("loss_gradient")
def snip(evidence: Evidence) -> Tensor:
    """``|weight * gradient|`` on one batch at the moment of the cut (Lee et al. 2019, arXiv:1810.02340).

    Meant for a single cut before the first step: ``schedule="one_shot"`` and a ``max_step`` that allows it.

    >>> import torch
    >>> snip(Evidence("fc", torch.tensor([2.0, -1.0]), loss_gradient=torch.tensor([1.0, 3.0]))).tolist()
    [2.0, 3.0]
    """
    return evidence.per_judged((evidence.weight * evidence.need("loss_gradient")).abs())
