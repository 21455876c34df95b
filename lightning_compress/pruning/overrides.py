"""Some weights' shares given by name, the rest allocated."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor

from lightning_compress.errors import CompressionError, did_you_mean
from lightning_compress.pruning.seats import share_out
from lightning_compress.pruning.weights import Allocation, Scores
from lightning_compress.values import is_number

DEFAULT = "default"


def split_overrides(allocation: Mapping[str, Any]) -> tuple[Any, dict[str, float]]:
    """The allocation of the rest, and pattern -> share.

    Raises:
        CompressionError: a share outside [0, 1).

    >>> split_overrides({"fc3": 0.5, "default": "erk"})
    ('erk', {'fc3': 0.5})
    """
    shares = {pattern: share for pattern, share in allocation.items() if pattern != DEFAULT}
    for pattern, share in shares.items():
        if not isinstance(pattern, str) or not is_number(share) or not 0 <= share < 1:
            raise CompressionError(
                f"allocation={{{pattern!r}: {share!r}}}: give each pattern the share of its zeros, in [0, 1); what "
                f'allocates the rest stands under "{DEFAULT}".'
            )
    return allocation.get(DEFAULT, "global"), shares


def with_overrides(allocation: Allocation, shares: Mapping[str, float], final: float) -> Allocation:
    """Weights with a share of their own have it by the time that ``final`` is reached, in proportion before.

    Args:
        allocation: of the rest.
        shares: pattern for the name of a parameter, or of a module around it -> its share; the last that matches holds.
        final: share of zeros in all at the end.
    """

    def allocate(scores: Mapping[str, Tensor], drop: int) -> dict[str, int]:
        sizes = {name: score.numel() for name, score in scores.items()}
        progress = min(1.0, drop / max(1.0, final * sum(sizes.values())))
        counts, rest = _counts(sizes, shares, drop, progress)
        left = drop - sum(counts.values())
        others = allocation(Scores(rest, scores.__getitem__), left) if rest else {}
        return {name: counts[name] if name in counts else others[name] for name in scores}

    return allocate


def share_of(name: str, shares: Mapping[str, float]) -> float | None:
    """The share that holds for a parameter; None where no pattern matches.

    >>> share_of("fc3.weight", {"fc*": 0.9, "fc3": 0.5})
    0.5
    """
    parts = name.split(".")
    around = [".".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
    found = [share for pattern, share in shares.items() if any(fnmatchcase(one, pattern) for one in around)]
    return found[-1] if found else None


def check_overrides(sizes: Mapping[str, int], shares: Mapping[str, float], final: float) -> None:
    """Refuse patterns that match no weight, and shares that leave the other weights more to give than they have.

    Args:
        sizes: parameter -> number of entries.
        shares: pattern -> share.
        final: share of zeros in all at the end.

    Raises:
        CompressionError: with the nearest names.
    """
    for pattern, share in shares.items():
        if not any(share_of(name, {pattern: share}) is not None for name in sizes):
            raise CompressionError(f"allocation: {pattern!r} matches no weight. {did_you_mean(pattern, sizes)}")
    if shares:
        _counts(sizes, shares, round(final * sum(sizes.values())), 1.0)


def _around(share: float, level: float) -> float:
    """From 0 at level 0 over ``share`` at a half to 1 at level 1."""
    return 2 * level * share if level < 0.5 else share + (2 * level - 1) * (1 - share)


def _counts(
    sizes: Mapping[str, int], shares: Mapping[str, float], drop: int, progress: float
) -> tuple[dict[str, int], list[str]]:
    """The zeros of weights with a share of their own, and the other weights, which give what is left of ``drop``."""
    own = {name: share for name in sizes if (share := share_of(name, shares)) is not None}
    counts = {name: round(share * progress * sizes[name]) for name, share in own.items()}
    rest = [name for name in sizes if name not in own]
    left = drop - sum(counts.values())
    if not rest and abs(left) <= len(own):  # what rounding leaves
        return share_out(sizes, lambda name, level: _around(own[name], level), drop), rest
    if not 0 <= left <= sum(sizes[name] for name in rest):
        raise CompressionError(
            f"The shares given by name make {sum(counts.values())} zeros of {drop}, and {left} are left for the other "
            f"{len(rest)} weights. Change sparsity=, or the shares in allocation=."
        )
    return counts, rest
