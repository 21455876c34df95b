"""Exact selection of the lowest scores in linear time, without a second copy of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 2**20
"""Scores that are looked at together."""
_HALF = 2**16


@dataclass(frozen=True)
class Threshold:
    """Where to cut: all scores below ``key`` go, and of those equal to it the first ``ties``.

    ``key`` is a score as an integer that sorts as the scores do.
    """

    key: int
    ties: int


def find_threshold(tensors: Iterable[Tensor], drop: int) -> Threshold:
    """The threshold under which exactly ``drop`` of all scores lie, ties falling to the earlier.

    Two passes: a histogram of the scores' upper 16 bits finds the bin, one of the lower 16 bits in that bin the score.

    Args:
        tensors: scores in fp32 or less, gone through twice; work them out on the way and none is kept in memory.
        drop: at most the number of scores.

    >>> find_threshold([torch.tensor([3.0, 1.0, 1.0])], 1).ties
    1
    """
    upper = torch.zeros(_HALF, dtype=torch.int64)
    for tensor in tensors:
        for keys in _chunks(tensor):
            upper += torch.bincount((keys >> 16) + _HALF // 2, minlength=_HALF).cpu()
    bin_, before = _position(upper, drop)
    lower = torch.zeros(_HALF, dtype=torch.int64)
    for tensor in tensors:
        for keys in _chunks(tensor):
            inside = keys[(keys >> 16) + _HALF // 2 == bin_]
            lower += torch.bincount(inside & (_HALF - 1), minlength=_HALF).cpu()
    low, below = _position(lower, drop - before)
    return Threshold(((bin_ - _HALF // 2) << 16) | low, drop - before - below)


def count_below(tensors: Mapping[str, Tensor], threshold: Threshold) -> dict[str, int]:
    """How many entries each tensor gives."""
    ties, counts = threshold.ties, {}
    for name in tensors:
        below = equal = 0
        for keys in _chunks(tensors[name]):
            below += int((keys < threshold.key).sum())
            equal += int((keys == threshold.key).sum())
        taken = min(ties, equal)
        ties -= taken
        counts[name] = below + taken
    return counts


def keep_top(scores: Tensor, drop: int) -> Tensor:
    """Boolean mask that keeps the largest scores; exactly ``drop`` entries are dropped.

    Ties fall to the earlier index, so the mask is a function of its input alone.

    Args:
        scores: any shape; in fp32.
        drop: number of entries to drop, at most all.

    >>> keep_top(torch.tensor([3.0, 1.0, 2.0]), 1).tolist()
    [True, False, True]
    """
    keep = torch.ones(scores.numel(), dtype=torch.bool, device=scores.device)
    if drop == 0:
        return keep.view_as(scores)
    threshold = find_threshold([scores], drop)
    ties, start = threshold.ties, 0
    for keys in _chunks(scores):
        part = keep[start : start + keys.numel()]
        torch.gt(keys, threshold.key, out=part)
        equal = torch.nonzero(keys == threshold.key).flatten()
        part[equal[ties:]] = True
        ties, start = max(0, ties - equal.numel()), start + keys.numel()
    return keep.view_as(scores)


def _chunks(scores: Tensor) -> Iterable[Tensor]:
    """The scores as int32 that sort alike, some at a time; -0.0 is 0.0."""
    for part in torch.split(scores.detach().reshape(-1), CHUNK):
        bits = (part.float() + 0.0).view(torch.int32)
        yield torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _position(histogram: Tensor, drop: int) -> tuple[int, int]:
    """The bin in which the ``drop``-th entry lies, and the number of entries in the bins before it."""
    sums = histogram.cumsum(0)
    place = int(torch.searchsorted(sums, max(drop, 1)))
    return place, int(sums[place - 1]) if place else 0
