"""A mixture in which the sure members speak louder."""

import torch
from torch import Tensor


def confidence(logits: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """Mean of the softened probabilities, each member weighed for each sample by exp(-entropy).

    Kwon et al., "Adaptive Knowledge Distillation Based on Entropy", ICASSP 2020, weigh teachers by entropy.

    >>> pooled = confidence(torch.tensor([[[9.0, 0.0]], [[0.0, 0.1]]]), torch.tensor([0.5, 0.5]), 1.0)
    >>> pooled.softmax(-1)[0, 0].item() > 0.75
    True
    """
    logs = logits.log_softmax(dim=-1)
    entropy = -(logs.exp() * logs.nan_to_num(neginf=0.0)).sum(dim=-1, keepdim=True)
    shares = (-entropy).exp() * weights.view(-1, *[1] * (logits.dim() - 1))
    known = logits.isfinite()
    softened = torch.where(known, (logits / temperature).log_softmax(dim=-1), -torch.inf)
    return ((softened + shares.log()).logsumexp(dim=0) - (shares * known).sum(dim=0).log()) * temperature
