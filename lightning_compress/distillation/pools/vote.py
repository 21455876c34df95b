"""A ballot."""

import torch
from torch import Tensor
from torch.nn.functional import one_hot


def vote(logits: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """Each member's vote goes to its most probable class; the shares of votes are the distribution, at any temperature.

    >>> ballots = torch.tensor([[[2.0, 0.0]], [[1.0, 0.0]], [[0.0, 9.0]]])
    >>> [round(p, 2) for p in vote(ballots, torch.full((3,), 1 / 3), 4.0).div(4).softmax(-1)[0].tolist()]
    [0.67, 0.33]
    """
    ballots = one_hot(logits.argmax(dim=-1), logits.shape[-1]).to(logits.dtype)
    shares = torch.einsum("m...,m->...", ballots, weights.to(logits.dtype))
    return shares.clamp(min=torch.finfo(torch.float32).eps).log() * temperature
