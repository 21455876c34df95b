"""Size of the weight and of what it is multiplied with."""

from torch import Tensor

from lightning_compress.pruning.evidence import Evidence, needs, relative


@needs("input_norm")
def wanda(evidence: Evidence) -> Tensor:
    """``|weight|`` times the root mean square of its input (Sun et al. 2024, arXiv:2306.11695).

    Summed for a neuron, relative to the group's mean, so that layers can be compared. The paper ranks within each
    output; how layers and rows share the zeros is the allocation's matter here.

    >>> import torch
    >>> wanda(Evidence("fc", torch.tensor([[2.0, -1.0]]), input_norm=torch.tensor([[1.0, 3.0]]))).tolist()
    [[2.0, 3.0]]
    """
    scores = evidence.per_judged(evidence.weight.abs() * evidence.need("input_norm"))
    return relative(scores) if evidence.of_neurons else scores
