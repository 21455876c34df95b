"""How much a neuron's output tells."""

from torch import Tensor

from lightning_compress.pruning.evidence import Evidence, needs


@needs("variance")
def activation_variance(evidence: Evidence) -> Tensor:
    """Standard deviation of a neuron's output, at the next layer's input: one that never changes is a bias.

    Polyak and Wolf 2015, "Channel-Level Acceleration of Deep Face Representations". The root gives the same ranking.

    >>> import torch
    >>> activation_variance(Evidence("fc", torch.zeros(2, 1), variance=torch.tensor([4.0, 0.0]))).tolist()
    [2.0, 0.0]
    """
    return evidence.need("variance").clamp(min=0).sqrt()
