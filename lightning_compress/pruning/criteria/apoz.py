"""Share of zero outputs."""

from torch import Tensor

from lightning_compress.errors import CompressionError
from lightning_compress.pruning.evidence import Evidence, needs


@needs("zero_share")
def apoz(evidence: Evidence) -> Tensor:
    """One minus the average share of zeros in a neuron's output (Hu et al. 2016, "Network Trimming", arXiv:1607.03250).

    Counted at the next layer's input, after the non-linearity.

    Raises:
        CompressionError: no zero has been seen (GELU, SiLU, a residual sum): the criterion says nothing there.

    >>> import torch
    >>> apoz(Evidence("fc", torch.zeros(2, 1), zero_share=torch.tensor([0.75, 0.25]))).tolist()
    [0.25, 0.75]
    """
    if evidence.zero_share is None or not bool((evidence.zero_share > 0).any()):
        raise CompressionError(
            f"{evidence.name!r}: none of its neurons ever gives an exact zero, so APoZ cannot tell them apart "
            f'(GELU and SiLU have no zeros). Use criterion="magnitude", or exclude=("{evidence.name}",).'
        )
    return 1 - evidence.zero_share
