"""Error of the layer's output when the other weights make up for it."""

from torch import Tensor

from lightning_compress.pruning.evidence import Evidence, needs, repairs
from lightning_compress.pruning.refit import inverse_moments, refit


@repairs(refit)
@needs("moments")
def obs(evidence: Evidence) -> Tensor:
    """Squared weight over the diagonal of the inverse second moments (Hassibi and Stork 1993, "Optimal Brain Surgeon").

    The error of the layer's output once the others are fitted anew, which they are after each cut, layer by layer, by
    SparseGPT's update (Frantar and Alistarh 2023, arXiv:2301.00774).

    >>> import torch
    >>> obs(Evidence("fc", torch.tensor([[2.0, 1.0]]), moments=torch.eye(2))).argsort().tolist()
    [[1, 0]]
    """
    diagonal = inverse_moments(evidence.need("moments")).diagonal()
    flat = evidence.weight.flatten(1)
    return (flat.double().square() / diagonal.to(flat.device)).float().view_as(evidence.weight)
