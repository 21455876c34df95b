"""The mean of log-probabilities."""

from torch import Tensor

from lightning_compress.distillation.pools.mean_logits import mean_logits


def geometric_mean(logits: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """Weighted geometric mean of the members' probabilities, Hinton et al. 2015's other choice.

    Where all members know all classes it is the same distribution as that of :func:`mean_logits`; where they do not,
    members are brought to one scale first.

    >>> import torch
    >>> pooled = geometric_mean(torch.tensor([[[2.0, 0.0]], [[7.0, 7.0]]]), torch.tensor([0.5, 0.5]), 1.0)
    >>> pooled.softmax(-1)[0, 0].item() == torch.tensor([1.0, 0.0]).softmax(-1)[0].item()
    True
    """
    return mean_logits(logits.log_softmax(dim=-1), weights, temperature)
