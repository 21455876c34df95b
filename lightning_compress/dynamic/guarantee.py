"""Thresholds with a promise: Learn-then-Test, with an exact test of paired losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import bdtr, gammaln, xlog1py, xlogy
from torch import Tensor

from lightning_compress.dynamic.thresholds import ExitRecord, Outcome, search_for_price
from lightning_compress.errors import CompressionError

PRICES = tuple(float(price) for price in np.geomspace(200.0, 1.0, 24))
CAUTION = (0.3, 0.45, 0.6, 0.7, 0.8, 0.9)
BETS = np.linspace(0.02, 0.98, 25)
NUISANCES = 40


@dataclass(frozen=True, eq=False)
class Guarantee:
    """Thresholds, and what is promised of them.

    With probability of at least ``1 - delta`` over the draw of the calibration samples, the accuracy of the network
    with these exits is at most ``risk`` below that of the whole network, on samples of the same distribution.

    Attributes:
        thresholds: (exits,); all infinite where nothing braver can be promised.
        risk: the largest drop of accuracy.
        delta: how probable it is that the promise is broken, at most.
        outcome: on the samples that the promise was tested on.
        tested: rules that were tested, the last of which failed unless all passed.
        samples: that the test was made on.
    """

    thresholds: Tensor
    risk: float
    delta: float
    outcome: Outcome
    tested: int
    samples: int


def guaranteed_thresholds(
    record: ExitRecord,
    *,
    risk: float = 0.02,
    delta: float = 0.1,
    tuning: ExitRecord | None = None,
    tuning_share: float = 0.4,
    prices: Sequence[float] = PRICES,
    seed: int = 0,
) -> Guarantee:
    """The cheapest thresholds of which a drop of at most ``risk`` can be promised at level ``delta``.

    Learn-then-Test by fixed-sequence testing (Angelopoulos et al., "Learn then Test", 2021, arXiv:2110.01052): one part
    of the samples makes a sequence of ever braver rules, the other part tests them in that order, each at level
    ``delta``, until one fails. The loss of a sample is paired: 1 where the exit is wrong and the whole network right,
    -1 where it is the other way round, so benefits count against harms; :func:`drop_p_value` tests its mean.

    Args:
        record: calibration samples, drawn like those to come, and used for nothing else before.
        risk: the largest drop of accuracy, in (0, 1).
        delta: in (0, 1).
        tuning: other samples that make the sequence, such as validation data; then all of ``record`` tests.
        tuning_share: of ``record`` that makes the sequence where there is no ``tuning``.
        prices: of a lost answer in units of the whole network's cost, from cautious to brave.
        seed: of the division.

    Raises:
        CompressionError: a number out of its range, or too few samples to divide.
    """
    if not 0 < risk < 1 or not 0 < delta < 1 or not 0 < tuning_share < 1:
        raise CompressionError(f"risk={risk}, delta={delta}, tuning_share={tuning_share}: each in (0, 1).")
    if tuning is None:
        number = record.scores.shape[1]
        order = torch.randperm(number, generator=torch.Generator().manual_seed(seed))
        cut = round(tuning_share * number)
        if not 0 < cut < number:
            raise CompressionError(f"{number} samples cannot be divided to tune and to test; give more.")
        tuning, record = record.part(order[:cut]), record.part(order[cut:])
    chosen = torch.full((len(record.scores),), float("inf"))
    tested = 0
    for thresholds in braver_rules(tuning, prices):
        tested += 1
        if drop_p_value(*harms_and_benefits(record, thresholds), record.scores.shape[1], risk) > delta:
            break
        chosen = thresholds
    return Guarantee(chosen, risk, delta, record.evaluate(chosen), tested, record.scores.shape[1])


def braver_rules(tuning: ExitRecord, prices: Sequence[float] = PRICES) -> list[Tensor]:
    """Rules of ever lower mean cost on ``tuning``, each the best at one price of a lost answer.

    On a few samples even the most cautious of these costs accuracy; before it come rules by which only the surest of
    its leavers leave.
    """
    rules: list[Tensor] = []
    former, last = None, float("inf")
    for price in prices:
        former = search_for_price(tuning, price, start=former)
        candidates = [_surest(tuning, former, share) for share in CAUTION] if not rules else []
        for thresholds in [*candidates, former]:
            cost = tuning.evaluate(thresholds).cost
            if cost < last:
                rules.append(thresholds)
                last = cost
    return rules


def _surest(tuning: ExitRecord, thresholds: Tensor, share: float) -> Tensor:
    """Thresholds at which about ``share`` of those leave at each exit who would at ``thresholds``."""
    exits, raised = tuning.exits(thresholds), thresholds.clone()
    for exit_, scores in enumerate(tuning.scores):
        leavers = scores[exits == exit_]
        if len(leavers):
            raised[exit_] = torch.quantile(leavers.float(), 1 - share)
    return raised


def harms_and_benefits(record: ExitRecord, thresholds: Tensor) -> tuple[int, int]:
    """How many samples are wrong at their exit and right at the end, and how many the other way round."""
    exits = record.exits(thresholds)
    right = record.correct.gather(0, exits[None]).squeeze(0)
    final = record.correct[-1]
    return int((final & ~right).sum()), int((right & ~final).sum())


def drop_p_value(harms: int, benefits: int, number: int, risk: float) -> float:
    """How probable so good a result is at most, if the accuracy really falls by ``risk`` or more.

    The loss of a sample is 1, 0 or -1. Results are ordered by the wealth of a gambler who bets against a drop of
    ``risk`` (Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", JRSS B 2024,
    arXiv:2010.09686), averaged over bets; instead of Markov's inequality the probability of at least this wealth is
    summed exactly over all results, and maximised over the one unknown number, the share of benefits. Where there are
    no benefits it is the binomial test; where there are many it is far less pessimistic than one that counts harms
    alone.

    Args:
        harms: samples with loss 1.
        benefits: samples with loss -1.
        number: of all samples.
        risk: in (0, 1).

    >>> round(drop_p_value(0, 0, 100, 0.03), 4), round(0.97**100, 4)
    (0.0476, 0.0476)
    >>> drop_p_value(6, 6, 300, 0.03) < 0.1 < drop_p_value(6, 0, 300, 0.03)
    True
    """
    wealth = _wealth(np.array([harms]), np.array([benefits]), number, risk)[0]
    if wealth <= 0:  # log wealth: no better than where the gambler began
        return 1.0
    most = _most_harms(number, risk, wealth)
    best, low, high = 0.0, 0.0, (1 - risk) / 2
    for _ in range(3):  # a grid, then finer ones around its best
        shares = np.linspace(low**0.5, high**0.5, NUISANCES) ** 2
        values = [_probability(most, number, risk, share) for share in shares]
        place = int(np.argmax(values))
        best = max(best, float(values[place]))
        low, high = shares[max(place - 1, 0)], shares[min(place + 1, NUISANCES - 1)]
    return min(best, float(np.exp(-wealth)), 1.0)


def _wealth(harms: NDArray[Any], benefits: NDArray[Any], number: int, risk: float) -> NDArray[np.float64]:
    """Logarithm of the mean wealth over the bets."""
    up, down = harms[:, None], benefits[:, None]
    logs = up * np.log1p(-BETS * (1 - risk)) + down * np.log1p(BETS * (1 + risk))
    logs = logs + (number - up - down) * np.log1p(BETS * risk)
    top = logs.max(axis=1, keepdims=True)
    result: NDArray[np.float64] = (top + np.log(np.exp(logs - top).mean(axis=1, keepdims=True)))[:, 0]
    return result


def _most_harms(number: int, risk: float, wealth: float) -> NDArray[Any]:
    """For each number of benefits the largest number of harms that still has this wealth; -1 where none has."""
    benefits = np.arange(number + 1)
    low, high = np.full(number + 1, -1), number - benefits
    while np.any(low < high):
        middle = (low + high + 1) // 2
        enough = _wealth(middle, benefits, number, risk) >= wealth - 1e-9
        low, high = np.where(enough, middle, low), np.where(enough, high, middle - 1)
    return low


def _probability(most: NDArray[Any], number: int, risk: float, share: float) -> float:
    """Of at most so many harms, where benefits have probability ``share`` and harms ``share + risk``."""
    benefits = np.flatnonzero(most >= 0)
    rest = number - benefits
    logs = gammaln(number + 1) - gammaln(benefits + 1) - gammaln(rest + 1)
    logs = logs + xlogy(benefits, share) + xlog1py(rest, -share)
    chance = min((share + risk) / (1 - share), 1.0)
    return float(np.sum(np.exp(logs) * bdtr(most[benefits].astype(float), rest, chance)))
