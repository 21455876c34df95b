"""Sharing a whole number among tensors, as seats are shared among parties."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import floor, nextafter


def share_out(sizes: Mapping[str, int], share: Callable[[str, float], float], total: int) -> dict[str, int]:
    """Counts that add up to ``total``, each the nearest whole number to ``size * share(name, level)`` for one level.

    Rounded at the half (Webster's method): unlike with largest remainders, nobody's count falls when ``total`` grows.

    Args:
        sizes: name -> its largest possible count.
        share: of a name's size at a level in [0, 1]: from 0 at level 0 to 1 at level 1, never falling.
        total: at most the sum of the sizes.

    >>> share_out({"a": 6, "b": 3}, lambda name, level: level, 4)
    {'a': 3, 'b': 1}
    """

    def counts(level: float) -> dict[str, int]:
        if level >= 1:
            return dict(sizes)
        return {name: min(size, floor(size * share(name, level) + 0.5)) for name, size in sizes.items()}

    low, high = 0.0, 1.0
    while nextafter(low, high) < high:
        middle = (low + high) / 2
        if not low < middle < high:
            break
        low, high = (middle, high) if sum(counts(middle).values()) < total else (low, middle)
    result, upper = (counts(0.0), counts(0.0)) if total == 0 else (counts(low), counts(high))
    left = total - sum(result.values())
    for name in sizes:
        step = min(left, upper[name] - result[name])
        result[name] += step
        left -= step
    return result
