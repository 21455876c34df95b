"""Rank of the feature maps."""

from torch import Tensor

from lightning_compress.pruning.evidence import Evidence, needs


@needs("rank")
def feature_map_rank(evidence: Evidence) -> Tensor:
    """Mean rank of a channel's feature map, at the next layer's input (Lin et al. 2020, "HRank", arXiv:2002.10179).

    Where the next layer is Linear the maps have no positions, and it is the share of outputs that are not zero.

    >>> import torch
    >>> feature_map_rank(Evidence("conv", torch.zeros(2, 1), rank=torch.tensor([1.5, 7.0]))).tolist()
    [1.5, 7.0]
    """
    return evidence.need("rank")
