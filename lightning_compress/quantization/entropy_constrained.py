"""Shared values that are short to write down: distortion against code length."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, isfinite, log

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_compress.errors import CompressionError
from lightning_compress.quantization.kmeans import Codebook, Initialisation, by_edges, centroids, check_clusters
from lightning_compress.quantization.points import Floats, Points, points_of

LEVEL_BITS = 20.0
"""What a level costs beside the weights: its value in 16 bits, its codeword's length."""

STEPS = 50
PIECE = 2**20


@dataclass(frozen=True)
class _Coder:
    """Levels, the zero first, and the bits that each is written in; all float64, shape (k + 1,)."""

    levels: Floats
    bits: Floats


def entropy_constrained(
    weights: Tensor,
    rate: float,
    *,
    clusters: int = 32,
    init: str | Initialisation = "optimal",
    importance: Tensor | None = None,
    level_bits: float = LEVEL_BITS,
) -> Codebook:
    """Shared values that minimize ``sum(importance * (w - level)**2) + rate * bits``, bits as an entropy coder needs.

    Entropy-constrained scalar quantization (Chou, Lookabaugh and Gray, 1989): weights go to the level that is cheapest,
    levels to the mean of their weights, codewords get the length -log2 of their share, until nothing moves. One level
    is an exact zero, and whatever is cheapest there becomes one: it prunes. Levels that do not pay for themselves go.

    Args:
        weights: floating-point, any shape; exact zeros stay.
        rate: price of a bit in units of ``importance * w**2``, at least 0.
        clusters: most levels besides the zero, 1 to 256.
        init: where the levels begin, as in :func:`~lightning_compress.quantization.share_weights`.
        importance: shaped like the weights, above 0; None: 1.
        level_bits: what a level costs in the file by itself.

    Raises:
        CompressionError: a value out of range, NaN or infinity.

    >>> weights = torch.tensor([0.1, -0.1, 0.0, 2.0, 2.1, -2.0])
    >>> entropy_constrained(weights, 0.1, clusters=2, level_bits=0).values
    tensor([ 0.0000,  0.0000,  0.0000,  2.0500,  2.0500, -2.0000])
    """
    check_clusters(clusters)
    check_rate(rate)
    points = points_of(weights, importance)
    coder = _fit(points, rate, clusters, init, level_bits)
    levels = torch.from_numpy(coder.levels[1:]).to(weights.device, weights.dtype)
    book = Codebook(levels, _assign(weights, importance, coder, rate))
    return _sorted(book)


def check_rate(rate: object) -> float:
    """Refuse a price that is none.

    Raises:
        CompressionError: not a finite number of at least 0.
    """
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < inf:
        raise CompressionError(f"rate={rate!r} is not the price of a bit: a number of at least 0, such as 1e-4.")
    return rate


def reassign(
    weights: Tensor, levels: Tensor, assignment: Tensor, rate: float, importance: Tensor | None = None
) -> Tensor:
    """Weights that have moved, to the levels that are cheapest now; int16, 0 for zero.

    Args:
        weights: where the weights would be.
        levels: the shared values.
        assignment: the present numbers, from which the lengths of the codewords follow; what is 0 stays 0.
        rate: price of a bit.
        importance: as in :func:`entropy_constrained`.

    >>> weights, zero = torch.tensor([0.1, 1.0, 0.9]), torch.tensor([1, 1, 1])
    >>> reassign(weights, torch.tensor([1.0]), zero, 0.0).tolist()
    [0, 1, 1]
    """
    counts = torch.bincount(assignment.flatten().long(), minlength=len(levels) + 1).double().cpu().numpy()
    coder = _Coder(np.concatenate([[0.0], levels.double().cpu().numpy()]), _bits(np.maximum(counts, 1.0)))
    return _assign(weights, importance, coder, rate).masked_fill_(assignment == 0, 0)


def ideal_bytes(assignment: Tensor) -> float:
    """Zero-order entropy of the numbers of a tensor in bytes, without any table.

    >>> ideal_bytes(torch.tensor([0, 1, 0, 1, 0, 1, 0, 1]))
    1.0
    """
    counts = torch.bincount(assignment.flatten().long()).double().cpu().numpy()
    return float((counts * _bits(np.maximum(counts, 1e-300))).sum() / 8)


def solve_rate(
    measure: Callable[[float], float],
    limit: float,
    *,
    rising: bool = False,
    low: float = 1e-8,
    high: float = 1.0,
    precision: float = 0.05,
) -> float:
    """The rate at which ``measure`` just keeps to ``limit``, by bisection of its logarithm.

    Args:
        measure: what a rate leads to; falls with it (bytes of the file) or rises (drop in accuracy).
        limit: not to be exceeded.
        rising: whether ``measure`` rises with the rate. Then the largest rate is sought, else the smallest.
        low: smallest rate that is considered.
        high: largest.
        precision: relative width of the interval at which the search ends.

    Raises:
        CompressionError: no rate between ``low`` and ``high`` keeps to ``limit``; the message has the nearest value.

    >>> round(solve_rate(lambda rate: 1000 / rate, 5000.0), 1)
    0.2
    >>> round(solve_rate(lambda rate: rate, 0.01, rising=True), 3)
    0.01
    """
    if not 0 < low < high < inf or not isfinite(limit):
        raise CompressionError(f"solve_rate: limit={limit}, between rates {low} and {high}, is no question.")
    easy, hard = (low, high) if rising else (high, low)
    best = measure(easy)
    if best > limit:
        raise CompressionError(
            f"{easy:g} leads to {best:.6g}; {limit:.6g} is out of reach. Allow more, or another range."
        )
    if measure(hard) <= limit:
        return hard
    while abs(log(easy / hard)) > precision:
        middle = (easy * hard) ** 0.5
        if measure(middle) <= limit:
            easy = middle
        else:
            hard = middle
    return easy


# -- the alternation --------------------------------------------------------------------------------------------------


def _fit(points: Points, rate: float, clusters: int, init: str | Initialisation, level_bits: float) -> _Coder:
    alive = points.values != 0
    if not alive.any():
        return _Coder(np.zeros(1), np.zeros(1))
    nonzero = Points(points.values[alive], points.masses[alive], points.counts[alive])
    around = centroids(nonzero, clusters + 1, init)
    if len(around) > clusters:
        around = np.delete(around, np.abs(around).argmin())  # the zero takes its place
    levels = np.concatenate([[0.0], around])
    even = np.full(len(levels), np.log2(len(levels) + 1))
    cheap_zero = np.where(levels == 0, 0.1, even + 4.0)  # another valley: most weights begin as zeros
    found = [_descend(points, _Coder(levels, bits), rate, level_bits) for bits in (even, cheap_zero)]
    return min(found, key=lambda coder: _total(points, coder, rate) + rate * level_bits * len(coder.levels))


def _descend(points: Points, coder: _Coder, rate: float, level_bits: float) -> _Coder:
    """Down to where no step and no level less is cheaper."""
    coder = _settle(points, coder, rate)
    while len(coder.levels) > 1:
        less = _without_worst(points, coder, rate, level_bits)
        if less is None:
            break
        coder = _settle(points, less, rate)
    return coder


def _total(points: Points, coder: _Coder, rate: float) -> float:
    return float(_costs(points.values, points.masses, points.counts, coder, rate).min(0).sum())


def _settle(points: Points, coder: _Coder, rate: float) -> _Coder:
    """Weights, levels and lengths in turn until the cost rests; levels that nobody takes are dropped."""
    former = inf
    for _ in range(STEPS):
        costs = _costs(points.values, points.masses, points.counts, coder, rate)
        choice = costs.argmin(0)
        total = float(costs[choice, np.arange(len(points))].sum())
        counts = np.bincount(choice, points.counts, len(coder.levels))
        mass = np.bincount(choice, points.masses, len(coder.levels))
        moment = np.bincount(choice, points.masses * points.values, len(coder.levels))
        used = counts > 0
        used[0] = True  # the zero is always there
        levels = np.divide(moment, mass, out=np.zeros_like(moment), where=mass > 0)
        levels[0] = 0.0
        coder = _Coder(levels[used], _bits(np.maximum(counts[used], 0.5)))
        if total >= former * (1 - 1e-7) and used.all():
            break
        former = total
    return coder


def _costs(values: Floats, masses: Floats, counts: Floats, coder: _Coder, rate: float) -> Floats:
    """What each point costs at each level, shape (k + 1, n); an exact zero has no choice."""
    costs: Floats = (values - coder.levels[:, None]) ** 2 * masses + (rate * coder.bits)[:, None] * counts
    costs[1:, values == 0] = inf
    return costs


def _bits(counts: Floats) -> Floats:
    bits: Floats = np.log2(counts.sum() / counts)
    return bits


def _without_worst(points: Points, coder: _Coder, rate: float, level_bits: float) -> _Coder | None:
    """Without the level whose weights would be served nearly as well by the others; None if each pays."""
    costs = _costs(points.values, points.masses, points.counts, coder, rate)
    choice = costs.argmin(0)
    everything = np.arange(len(points))
    first = costs[choice, everything].copy()
    costs[choice, everything] = inf
    second = costs.min(0)
    second = np.where(np.isfinite(second), second, first)
    worth = np.bincount(choice, second - first, len(coder.levels)) - rate * level_bits
    worth[0] = inf
    worst = int(worth.argmin())
    if worth[worst] >= 0:
        return None
    return _Coder(np.delete(coder.levels, worst), np.delete(coder.bits, worst))


# -- assignment -------------------------------------------------------------------------------------------------------


def _assign(weights: Tensor, importance: Tensor | None, coder: _Coder, rate: float) -> Tensor:
    if importance is None:
        return _assign_by_edges(weights, coder, rate)
    flat, mass = weights.detach().flatten().cpu().double().numpy(), importance.flatten().cpu().double().numpy()
    choice = np.empty(len(flat), np.int16)
    for start in range(0, len(flat), PIECE):
        values = flat[start : start + PIECE]
        choice[start : start + PIECE] = _costs(
            values, mass[start : start + PIECE], np.ones_like(values), coder, rate
        ).argmin(0)
    return torch.from_numpy(choice).view(weights.shape).to(weights.device)


def _assign_by_edges(weights: Tensor, coder: _Coder, rate: float) -> Tensor:
    """Where all weights cost alike, each level is cheapest in one interval: the lower envelope of parabolas."""
    order, edges = _envelope(coder, rate)
    place = by_edges(weights, torch.tensor(edges, device=weights.device))
    table = torch.zeros(len(order) + 1, dtype=torch.int16, device=weights.device)
    table[1:] = torch.from_numpy(order).to(torch.int16)
    return table[place.long()]


def _envelope(coder: _Coder, rate: float) -> tuple[NDArray[np.int64], list[float]]:
    """The levels that are cheapest somewhere, from left to right, and the edges between them."""
    kept: list[int] = []
    edges: list[float] = []
    for level in np.argsort(coder.levels, kind="stable").tolist():
        while kept:
            step = coder.levels[level] - coder.levels[kept[-1]]
            dearer = rate * (coder.bits[level] - coder.bits[kept[-1]])
            if step == 0:
                edge = inf if dearer >= 0 else -inf
            else:
                edge = (coder.levels[level] + coder.levels[kept[-1]]) / 2 + dearer / (2 * step)
            if edges and edge <= edges[-1]:
                kept.pop()
                edges.pop()
                continue
            if edge == -inf:
                kept.pop()
                continue
            break
        else:
            kept.append(level)
            continue
        if edge < inf:
            kept.append(level)
            edges.append(edge)
    return np.array(kept, dtype=np.int64), edges


def _sorted(book: Codebook) -> Codebook:
    """Levels in rising order, without those that nobody takes."""
    used = torch.bincount(book.assignment.flatten().long(), minlength=len(book.levels) + 1)[1:] > 0
    order = torch.argsort(book.levels[used], stable=True)
    number = torch.zeros(len(book.levels) + 1, dtype=torch.int16, device=book.levels.device)
    places = torch.flatten(used.nonzero())[order]
    number[places + 1] = torch.arange(1, len(places) + 1, dtype=torch.int16, device=book.levels.device)
    return Codebook(book.levels[places], number[book.assignment.long()])
