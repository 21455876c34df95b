"""Scale of the BatchNorm behind a neuron."""

from torch import Tensor

from lightning_compress.pruning.evidence import Evidence, needs


@needs("scale")
def batch_norm_scale(evidence: Evidence) -> Tensor:
    """Absolute value of the BatchNorm's weight (Liu et al. 2017, "Network Slimming", arXiv:1708.06519).

    The mean where several BatchNorms stand behind the neurons. Works best after
    :class:`~lightning_compress.pruning.SparsityRegularization`.

    >>> import torch
    >>> batch_norm_scale(Evidence("conv", torch.zeros(2, 1), scale=torch.tensor([0.1, 1.0]))).argsort().tolist()
    [0, 1]
    """
    return evidence.need("scale")
