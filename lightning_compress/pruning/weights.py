"""Judging single weights and choosing which go: pure functions on tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from lightning_compress.errors import CompressionError
from lightning_compress.pruning.evidence import Criterion, Evidence
from lightning_compress.pruning.masks import keep_top

Allocation: TypeAlias = Callable[[Mapping[str, Tensor], int], dict[str, int]]
"""``f(scores, drop)``: how many of the ``drop`` entries each tensor gives."""


def judge_weights(criterion: Criterion, name: str, weight: Tensor) -> Tensor:
    """One finite score for each entry of ``weight``.

    Raises:
        CompressionError: scores of another shape, or not finite.
    """
    scores = criterion(Evidence(name, weight.detach().float())).float()
    if scores.shape != weight.shape:
        raise CompressionError(
            f"The criterion gave scores of shape {tuple(scores.shape)} for {name!r}; expected {tuple(weight.shape)}."
        )
    if not bool(torch.isfinite(scores).all()):
        raise CompressionError(f"The criterion gave NaN or infinity for {name!r}: are its weights finite?")
    return scores


def choose_weights(
    scores: Mapping[str, Tensor], alive: Mapping[str, Tensor], allocation: Allocation, drop: int
) -> dict[str, Tensor]:
    """Masks with exactly ``drop`` zeros in all, the lowest scores of each tensor; what is masked already stays masked.

    Args:
        scores: by parameter.
        alive: the masks so far, False where masked.
        allocation: says how many each tensor gives.
        drop: number of zeros, not below those that ``alive`` has.

    Raises:
        CompressionError: a tensor would be left with nothing, or the allocation does not add up.

    >>> from lightning_compress.pruning.allocations.uniform import uniform
    >>> scores = {"fc": torch.tensor([4.0, 1.0, 3.0, 2.0])}
    >>> choose_weights(scores, {"fc": torch.tensor([False, True, True, True])}, uniform, 2)["fc"].tolist()
    [False, False, True, True]
    """
    ranked = {name: score.masked_fill(~alive[name], -torch.inf) for name, score in scores.items()}
    masked = {name: int((~mask).sum()) for name, mask in alive.items()}
    counts = _allocate(ranked, masked, allocation, drop)
    for name, count in counts.items():
        if count == scores[name].numel():
            raise CompressionError(
                f"{name!r} has {count} weights, and this cut would leave it none. "
                f'Use allocation="uniform", a lower sparsity, or exclude=("{name}",).'
            )
    return {name: keep_top(ranked[name], counts[name]) for name in scores}


def _allocate(
    ranked: Mapping[str, Tensor], masked: Mapping[str, int], allocation: Allocation, drop: int
) -> dict[str, int]:
    """What ``allocation`` says; tensors to which it gives fewer zeros than they have keep theirs, the others share."""
    settled: dict[str, int] = {}
    while True:
        free = {name: score for name, score in ranked.items() if name not in settled}
        left = drop - sum(settled.values())
        counts = allocation(free, left)
        whole = all(name in free and 0 <= count <= free[name].numel() for name, count in counts.items())
        if not whole or len(counts) != len(free) or sum(counts.values()) != left:
            raise CompressionError(f"The allocation was to share {left} zeros among {list(free)}, and gave {counts}.")
        short = {name: masked[name] for name, count in counts.items() if count < masked[name]}
        if not short:
            return {**settled, **counts}
        settled |= short
