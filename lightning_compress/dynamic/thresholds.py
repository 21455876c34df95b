"""Thresholds from held-out data: a coordinate search over the quantiles of each exit's confidence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_compress.errors import CompressionError

QUANTILES = 40
ROUNDS = 20
PRICES = (1.0, 3.0, 10.0, 30.0)
"""Of a lost answer in units of the whole network's cost, at which a search for a drop also starts."""


@dataclass(frozen=True, eq=False)
class ExitRecord:
    """What the exits of a network say of held-out samples.

    Attributes:
        scores: (exits, N), confidences.
        correct: (exits + 1, N) bool: whether the answer there is right; the last row is the whole network's.
        costs: (exits + 1,) float64: what a sample costs that leaves there; rising.

    Raises:
        CompressionError: shapes that do not fit each other, or costs that fall.
    """

    scores: Tensor
    correct: Tensor
    costs: Tensor

    def __post_init__(self) -> None:
        exits, number = self.scores.shape
        if self.correct.shape != (exits + 1, number) or self.costs.shape != (exits + 1,) or number == 0:
            raise CompressionError(
                f"Scores {tuple(self.scores.shape)}, answers {tuple(self.correct.shape)} and costs "
                f"{tuple(self.costs.shape)} are not (exits, N), (exits + 1, N) and (exits + 1,)."
            )
        if not bool((self.costs[1:] >= self.costs[:-1]).all()):
            raise CompressionError(f"Costs must rise from exit to exit, not {self.costs.tolist()}.")

    def part(self, samples: Tensor) -> ExitRecord:
        """The record of some of the samples."""
        return ExitRecord(self.scores[:, samples], self.correct[:, samples], self.costs)

    def exits(self, thresholds: Tensor) -> Tensor:
        """Where each sample leaves: the first exit whose score reaches its threshold; (N,) int64."""
        return exits_of(self.scores, thresholds)

    def evaluate(self, thresholds: Tensor) -> Outcome:
        """Accuracy, mean cost and shares of each exit under ``thresholds``."""
        exits = self.exits(thresholds)
        right = self.correct.gather(0, exits[None]).squeeze(0)
        shares = torch.bincount(exits, minlength=len(self.costs)).double() / len(exits)
        return Outcome(
            float(right.double().mean()),
            float(self.correct[-1].double().mean()),
            float(shares @ self.costs.double()),
            float(shares @ self.costs.double() / self.costs[-1]),
            shares,
        )


@dataclass(frozen=True, eq=False)
class Outcome:
    """What thresholds do to a set of samples.

    Attributes:
        accuracy: with exits.
        full_accuracy: of the whole network.
        cost: mean of a sample, in the unit of the record's costs.
        relative_cost: the same as a share of the whole network's.
        shares: (exits + 1,) of the samples that leave at each exit.
    """

    accuracy: float
    full_accuracy: float
    cost: float
    relative_cost: float
    shares: Tensor

    @property
    def drop(self) -> float:
        """How much lower the accuracy is than the whole network's."""
        return self.full_accuracy - self.accuracy


def exits_of(scores: Tensor, thresholds: Tensor) -> Tensor:
    """The first exit whose score (exits, N) reaches its threshold (exits,); the number of exits where none does.

    >>> exits_of(torch.tensor([[0.9, 0.1], [0.2, 0.3]]), torch.tensor([0.5, 0.4])).tolist()
    [0, 2]
    """
    reached = scores >= thresholds[:, None].to(scores)
    return torch.where(reached.any(dim=0), reached.to(torch.int8).argmax(dim=0), len(scores))


def search_for_drop(record: ExitRecord, drop: float = 0.0, *, quantiles: int = QUANTILES) -> Tensor:
    """The cheapest thresholds whose accuracy on ``record`` is at most ``drop`` below the whole network's; (exits,).

    What holds on these samples may not hold on others: on a few hundred, "no drop" became a drop of two points in our
    measurements. :func:`~lightning_compress.dynamic.guarantee.guaranteed_thresholds` promises.

    >>> scores, correct = torch.tensor([[0.9, 0.8, 0.1]]), torch.tensor([[True, True, False], [True, True, True]])
    >>> record = ExitRecord(scores, correct, torch.tensor([1.0, 10.0]))
    >>> round(record.evaluate(search_for_drop(record, 0.0)).cost, 6)
    4.0
    """
    whole = record.correct[-1].sum()
    least = float(whole) - drop * record.scores.shape[1] - 1e-6
    # from nobody leaving, the first exit would take all the slack; rules at a price share it out between the exits
    starts = [*_starts_off(record), *(search_for_price(record, price, quantiles=quantiles) for price in PRICES)]
    return _search(record, lambda right, cost: (right >= least, -cost, right), quantiles, starts)


def search_for_cost(record: ExitRecord, cost: float, *, quantiles: int = QUANTILES) -> Tensor:
    """The most accurate thresholds whose mean cost on ``record`` is at most ``cost``; (exits,).

    Raises:
        CompressionError: even if all left at the first exit it would cost more.

    >>> scores, correct = torch.tensor([[0.9, 0.8, 0.1]]), torch.tensor([[True, True, False], [True, True, True]])
    >>> record = ExitRecord(scores, correct, torch.tensor([1.0, 10.0]))
    >>> record.evaluate(search_for_cost(record, 5.0)).accuracy
    1.0
    """
    if cost < float(record.costs[0]):
        raise CompressionError(
            f"A mean cost of {cost:,.6g} is not within reach: the first exit alone costs "
            f"{float(record.costs[0]):,.6g}. Put an exit earlier."
        )
    budget = cost * record.scores.shape[1] * (1 + 1e-9)
    return _search(record, lambda right, spent: (spent <= budget, right, -spent), quantiles, _starts_on(record))


def search_for_price(
    record: ExitRecord, price: float, *, quantiles: int = QUANTILES, start: Tensor | None = None
) -> Tensor:
    """Thresholds of least ``mean cost / whole cost + price * drop``: what a family of ever braver rules is made of."""
    whole = float(record.costs[-1])
    starts = _starts_off(record) + ([] if start is None else [start])
    return _search(record, lambda right, spent: (-spent / whole + price * right,), quantiles, starts)


Value = tuple[Tensor, ...]


def _search(
    record: ExitRecord, value: Callable[[Tensor, Tensor], Value], quantiles: int, starts: Sequence[Tensor]
) -> Tensor:
    """Coordinate search: each threshold in turn takes its best value, until none changes; the best of all starts."""
    grids = [_grid(scores, quantiles) for scores in record.scores]
    best: tuple[tuple[float, ...], Tensor] | None = None
    for start in starts:
        thresholds = start.clone()
        for _ in range(ROUNDS):
            former = thresholds.clone()
            for exit_, grid in enumerate(grids):
                thresholds[exit_] = _best_of(record, thresholds, exit_, grid, value)
            if torch.equal(former, thresholds):
                break
        exits = record.exits(thresholds)
        right = record.correct.gather(0, exits[None]).sum().double()
        key = tuple(float(one) for one in value(right, record.costs[exits].double().sum()))
        if best is None or key > best[0]:
            best = key, thresholds
    assert best is not None
    return best[1]


def _best_of(
    record: ExitRecord, thresholds: Tensor, exit_: int, grid: Tensor, value: Callable[[Tensor, Tensor], Value]
) -> Tensor:
    """The value of one threshold, the others as they are, at which ``value`` is largest (lexicographically)."""
    others = thresholds.clone()
    others[exit_] = float("inf")
    without = record.exits(others)
    right, spent = record.correct.gather(0, without[None])[0].double(), record.costs[without].double()
    there = without > exit_  # these would leave here instead
    scores = record.scores[exit_][there]
    leaves = (scores[None] >= grid[:, None].to(scores)).double()
    gained = record.correct[exit_][there].double() - right[there]
    saved = float(record.costs[exit_]) - spent[there]
    keys = value(right.sum() + leaves @ gained, spent.sum() + leaves @ saved)
    order = range(len(grid))
    return grid[max(order, key=lambda place: tuple(float(key[place]) for key in keys))]


def _grid(scores: Tensor, quantiles: int) -> Tensor:
    """Nobody leaves, then quantiles of the scores from high to low: distinct values, halfway between neighbours."""
    levels = torch.linspace(0, 1, quantiles, dtype=torch.float64)
    values = torch.unique(torch.quantile(scores.double(), levels, interpolation="nearest")).flip(0)
    return torch.cat([values.new_full((1,), float("inf")), values]).to(torch.float32)


def _starts_off(record: ExitRecord) -> list[Tensor]:
    return [torch.full((len(record.scores),), float("inf"))]


def _starts_on(record: ExitRecord) -> list[Tensor]:
    """All leave at once, and rules that send the same share out at each exit."""
    starts = [torch.full((len(record.scores),), -float("inf"))]
    starts += [torch.quantile(record.scores.float(), 1 - share, dim=1) for share in (0.2, 0.4, 0.6, 0.8)]
    return starts
