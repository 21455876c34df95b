"""Judging single weights and choosing which go: pure functions on tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from lightning_compress.errors import CompressionError
from lightning_compress.pruning.evidence import Criterion, Evidence
from lightning_compress.pruning.patterns import Pattern
from lightning_compress.pruning.threshold import keep_top
from lightning_compress.random_states import isolated_random_states, seed_torch

Allocation: TypeAlias = Callable[[Mapping[str, Tensor], int], dict[str, int]]
"""``f(scores, drop)``: how many of the ``drop`` entries each tensor gives."""


def judge_weights(criterion: Criterion, evidence: Evidence) -> Tensor:
    """One finite score for each entry of ``evidence.weight``.

    Raises:
        CompressionError: scores of another shape, or not finite.
    """
    name, shape = evidence.name, evidence.weight.shape
    scores = criterion(evidence).float()
    if scores.shape != shape:
        raise CompressionError(
            f"The criterion gave scores of shape {tuple(scores.shape)} for {name!r}; expected {tuple(shape)}."
        )
    if not bool(torch.isfinite(scores).all()):
        raise CompressionError(f"The criterion gave NaN or infinity for {name!r}: are its weights finite?")
    return scores


class Scores(Mapping[str, Tensor]):
    """Scores that are worked out whenever they are asked for, so that those of one tensor at a time are in memory.

    Args:
        names: of the tensors.
        score: name -> its scores; the same at each call.

    >>> Scores(["fc"], lambda name: torch.ones(2))["fc"].tolist()
    [1.0, 1.0]
    """

    def __init__(self, names: Iterable[str], score: Callable[[str], Tensor]) -> None:
        self._names, self._score = list(names), score

    def __getitem__(self, name: str) -> Tensor:
        return self._score(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def scores_of(criterion: Criterion, names: Sequence[str], evidence: Callable[[str], Evidence]) -> Scores:
    """What ``criterion`` says of each tensor; one that draws random numbers draws the same each time it is asked.

    Args:
        criterion: judges one tensor.
        names: of the tensors.
        evidence: name -> what is known of it.
    """
    with isolated_random_states():
        seed = int(torch.randint(2**31, ()))

    def score(name: str) -> Tensor:
        with isolated_random_states():
            seed_torch(seed + names.index(name))
            return judge_weights(criterion, evidence(name))

    return Scores(names, score)


def choose_weights(
    scores: Mapping[str, Tensor],
    alive: Mapping[str, Tensor],
    allocation: Allocation,
    drop: int,
    pattern: Pattern | None = None,
) -> dict[str, Tensor]:
    """Masks with exactly ``drop`` zeros in all, the lowest scores of each tensor; what is masked already stays masked.

    With a ``pattern`` as near to ``drop`` as whole units of it allow.

    Args:
        scores: by parameter; minus infinity where masked.
        alive: the masks so far, False where masked.
        allocation: says how many each tensor gives.
        drop: number of zeros, not below those that ``alive`` has.
        pattern: which entries go together.

    Raises:
        CompressionError: a tensor would be left with nothing, or the allocation does not add up.

    >>> from lightning_compress.pruning.allocations.uniform import uniform
    >>> scores = {"fc": torch.tensor([4.0, 1.0, 3.0, 2.0])}
    >>> choose_weights(scores, {"fc": torch.tensor([False, True, True, True])}, uniform, 2)["fc"].tolist()
    [False, False, True, True]
    """

    def masked(name: str) -> Tensor:
        return scores[name].masked_fill(~alive[name], -torch.inf)

    ranked = Scores(scores, masked if pattern is None else lambda name: pattern.spread(masked(name)))
    zeros = {name: int((~mask).sum()) for name, mask in alive.items()}
    sizes = {name: mask.numel() for name, mask in alive.items()}
    counts = _allocate(ranked, sizes, zeros, allocation, drop)
    if pattern is not None:
        counts = pattern.whole(counts, {name: tuple(mask.shape) for name, mask in alive.items()}, zeros)
    for name, count in counts.items():
        if count == sizes[name]:
            raise CompressionError(
                f"{name!r} has {count} weights, and this cut would leave it none. "
                f'Use allocation="uniform", a lower sparsity, or exclude=("{name}",).'
            )
    choose = keep_top if pattern is None else pattern.choose
    return {name: choose(masked(name), counts[name]) for name in scores}


def _allocate(
    ranked: Scores, sizes: Mapping[str, int], masked: Mapping[str, int], allocation: Allocation, drop: int
) -> dict[str, int]:
    """What ``allocation`` says; tensors to which it gives fewer zeros than they have keep theirs, the others share."""
    settled: dict[str, int] = {}
    while True:
        free = Scores([name for name in ranked if name not in settled], ranked.__getitem__)
        left = drop - sum(settled.values())
        counts = allocation(free, left)
        whole = all(name not in settled and 0 <= count <= sizes.get(name, -1) for name, count in counts.items())
        if not whole or len(counts) != len(free) or sum(counts.values()) != left:
            raise CompressionError(f"The allocation was to share {left} zeros among {list(free)}, and gave {counts}.")
        short = {name: masked[name] for name, count in counts.items() if count < masked[name]}
        if not short:
            return {**settled, **counts}
        settled |= short
