"""What each member of an ensemble is worth."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import nll_loss

from lightning_compress.distillation.bank import POOLS, Pool, normalised
from lightning_compress.errors import CompressionError
from lightning_compress.registry import resolve


def fit_weights(logits: Tensor, labels: Tensor, *, rounds: int = 200) -> Tensor:
    """Weights of the mixture of the members' distributions that makes held-out labels most probable.

    Found by expectation maximisation (the likelihood is concave in the weights), from equal weights.

    Args:
        logits: (members, N, C), -inf where a member does not know a class.
        labels: (N,).
        rounds: of expectation maximisation.

    Returns:
        (members,), summing to 1.

    Raises:
        CompressionError: another number of labels than of samples.

    >>> sure_and_right = torch.tensor([[3.0, 0.0], [0.0, 3.0]])
    >>> fit_weights(torch.stack([sure_and_right, -sure_and_right]), torch.tensor([0, 1]))[0].item() > 0.99
    True
    """
    if logits.shape[1] != len(labels):
        raise CompressionError(f"fit_weights: {logits.shape[1]} samples have logits and {len(labels)} have labels.")
    chances = logits.double().softmax(dim=-1)[:, torch.arange(len(labels)), labels].clamp(min=1e-12)
    weights = torch.full((len(logits), 1), 1 / len(logits), dtype=torch.float64)
    for _ in range(rounds):
        shares = weights * chances
        weights = (shares / shares.sum(dim=0)).mean(dim=1, keepdim=True)
    return weights.flatten().float().clamp(min=1e-6)


@dataclass(frozen=True)
class Worth:
    """An ensemble with or without one of its members, on held-out data.

    Attributes:
        without: name of the member left out; "" for the whole ensemble.
        accuracy: share of right answers.
        nll: mean negative log-likelihood of the right answers, in nats.
    """

    without: str
    accuracy: float
    nll: float


def leave_one_out(
    logits: Tensor,
    labels: Tensor,
    names: list[str],
    *,
    pool: str | Pool = "mean_probabilities",
    weights: Tensor | None = None,
) -> list[Worth]:
    """The whole ensemble, and the ensemble without each of its members.

    Args:
        logits: (members, N, C) of held-out samples.
        labels: (N,).
        names: of the members.
        pool: as in :class:`~lightning_compress.distillation.Distillation`.
        weights: (members,); None weighs them equally.

    >>> logits = torch.tensor([[[3.0, 0.0]], [[0.0, 1.0]]])
    >>> [(one.without, one.accuracy) for one in leave_one_out(logits, torch.tensor([0]), ["a", "b"])]
    [('', 1.0), ('a', 0.0), ('b', 1.0)]
    """
    function: Pool = resolve(pool, POOLS)
    weights = torch.ones(len(logits)) if weights is None else weights
    everyone = list(range(len(logits)))
    rows = []
    for without in [None, *everyone]:
        members = [member for member in everyone if member != without]
        if members:
            pooled = function(logits[members].float(), normalised(weights[members].tolist()), 1.0)
            accuracy = float((pooled.argmax(-1) == labels).float().mean())
            nll = float(nll_loss(pooled.log_softmax(-1), labels))
            rows.append(Worth("" if without is None else names[without], accuracy, nll))
    return rows
