"""The symmetric divergence."""

from math import log

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from lightning_compress.distillation.precision import full_precision, reads


@reads("classes")
@full_precision
def jensen_shannon(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """T^2 times the Jensen-Shannon divergence of the softened distributions; at T = 1 at most log 2.

    Lin, "Divergence Measures Based on the Shannon Entropy", 1991.

    Args:
        student: logits (N, C).
        teacher: logits (N, C).
        temperature: T, above 0.

    >>> round(jensen_shannon(torch.tensor([[50.0, 0.0]]), torch.tensor([[0.0, 50.0]]), 1.0).item(), 4)
    0.6931
    """
    found, expected = log_softmax(student / temperature, dim=-1), log_softmax(teacher / temperature, dim=-1)
    middle = torch.logaddexp(found, expected) - log(2)
    divergences = [kl_div(middle, side, reduction="batchmean", log_target=True) for side in (found, expected)]
    return sum(divergences, torch.zeros_like(divergences[0])) / 2 * temperature**2
