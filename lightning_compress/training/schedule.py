"""When to cut, and how far: a schedule lists targets; time spaces them, or each recovery releases the next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, floor, inf, log1p
from typing import TypeAlias

from lightning_compress.errors import CompressionError
from lightning_compress.registry import resolve
from lightning_compress.values import is_number, is_whole

Shape: TypeAlias = Callable[[float, float], float]
DEFAULT_MAX_STEP = 0.2
_SLACK = 1e-9


@dataclass(frozen=True)
class Target:
    """``value``: the share to have reached after this cut; ``time``: when it is due, in epochs."""

    time: float
    value: float


@dataclass(frozen=True)
class Schedule:
    """Targets over the length of a fit.

    Attributes:
        shape: name of a function in ``training/schedules`` or any ``f(progress, final) -> target``, rising to ``final``
            at 1.
        start: time of the first cut; an int counts epochs, a float in [0, 1] is a share of the fit.
        end: time by which the last cut is due, likewise; what is left of the fit is fine-tuning.
        every: epochs between cuts (0.5: twice an epoch). None: once an epoch, more often where ``max_step`` asks for
            it.
        rounds: number of cuts, evenly spaced; instead of ``every``.

    >>> [round(t.value, 3) for t in Schedule("linear", rounds=4).targets(0.4, horizon=8)]
    [0.1, 0.2, 0.3, 0.4]
    """

    shape: str | Shape = "cubic"
    start: float = 0.0
    end: float = 0.75
    every: float | None = None
    rounds: int | None = None

    def __post_init__(self) -> None:
        resolve(self.shape, "lightning_compress.training.schedules")
        for name, value in (("start", self.start), ("end", self.end)):
            if not is_number(value) or not 0 <= value < inf or (isinstance(value, float) and value > 1):
                raise CompressionError(
                    f"Schedule({name}={value}): give a share of the fit in [0, 1] as a float, or epochs as an int."
                )
        if self.every is not None and not (is_number(self.every) and 0 < self.every < inf):
            raise CompressionError(f"Schedule(every={self.every}): epochs between cuts must be above 0.")
        if self.rounds is not None and not (is_whole(self.rounds) and self.rounds >= 1):
            raise CompressionError(f"Schedule(rounds={self.rounds}): at least one round is needed.")
        if self.every is not None and self.rounds is not None:
            raise CompressionError("Schedule: give every or rounds, not both.")
        if type(self.start) is type(self.end) and self.start > self.end:
            raise CompressionError(f"Schedule(start={self.start}, end={self.end}): there is no time for a cut.")

    def targets(self, final: float, *, horizon: float, max_step: float | None = None) -> tuple[Target, ...]:
        """The list of targets up to ``final`` for a fit of ``horizon`` epochs.

        No cut takes more than ``max_step`` (None: 20 %) of what is left. Where cuts of the asked size would, they are
        split, unless their number was fixed by ``every``, ``rounds`` or ``one_shot``.

        Raises:
            CompressionError: a cut of fixed size larger than ``max_step``; an empty interval.
        """
        if final <= 0:
            return ()
        start, end = self._in_epochs(self.start, horizon), min(self._in_epochs(self.end, horizon), horizon)
        if start > end or (start >= horizon):
            raise CompressionError(
                f"Schedule: from epoch {start:g} to epoch {end:g} of {horizon:g} there is no time for a cut."
            )
        limit = DEFAULT_MAX_STEP if max_step is None else max_step
        return _within(self._sampled(final, start, end, limit), end, limit, fixed=self._fixed)

    @property
    def _fixed(self) -> bool:
        return self.shape == "one_shot" or self.every is not None or self.rounds is not None

    def _sampled(self, final: float, start: float, end: float, limit: float) -> list[Target]:
        shape: Shape = resolve(self.shape, "lightning_compress.training.schedules")
        count = self._count(final, end - start, limit)
        even = self.rounds is not None or self.shape == "iterative"
        spacing = (end - start) / count if even else self.every or 1.0
        values = [shape((k + 1) / count, final) for k in range(count)]
        values[-1] = final
        targets: list[Target] = []
        for k, value in enumerate(values):
            if not 0 <= value <= final + _SLACK:
                raise CompressionError(
                    f"Schedule shape {self.shape!r} asks for {value:.4g} on the way to {final:.4g}; it must rise to it."
                )
            if value > (targets[-1].value if targets else 0.0):
                targets.append(Target(start + k * spacing, min(value, final)))
        return targets

    def _count(self, final: float, length: float, limit: float) -> int:
        if self.shape == "one_shot":
            return 1
        if self.rounds is not None:
            return self.rounds
        if self.shape == "iterative":
            return cuts_needed(0.0, final, limit)
        return max(1, floor(length / (self.every or 1.0) + _SLACK) + (self.every is not None))

    @staticmethod
    def _in_epochs(value: float, horizon: float) -> float:
        return value * horizon if isinstance(value, float) else float(value)


def cuts_needed(before: float, after: float, limit: float) -> int:
    """Fewest cuts from ``before`` to ``after`` that each take at most the share ``limit`` of what is left.

    >>> cuts_needed(0.0, 0.9, 0.2)
    11
    """
    if after >= 1 or limit >= 1:
        return 1
    return max(1, ceil(log1p(-(after - before) / (1 - before)) / log1p(-limit) - _SLACK))


def _within(targets: list[Target], end: float, limit: float, *, fixed: bool) -> tuple[Target, ...]:
    """The targets with every cut larger than ``limit`` split into equal shares, evenly spaced up to the next."""
    result: list[Target] = []
    before = 0.0
    for position, target in enumerate(targets):
        count = cuts_needed(before, target.value, limit)
        if count > 1 and fixed:
            share = (target.value - before) / (1 - before)
            raise CompressionError(
                f"The cut from {before:.1%} to {target.value:.1%} takes {share:.1%} of what is left; max_step is "
                f"{limit:.0%}. Use more cuts (schedule='iterative'), or allow it with "
                f"max_step={ceil(share * 100) / 100:g}."
            )
        until = targets[position + 1].time if position + 1 < len(targets) else max(end, target.time)
        for k in range(count):
            kept = (1 - before) * ((1 - target.value) / (1 - before)) ** ((k + 1) / count)
            value = target.value if k == count - 1 else 1 - kept
            result.append(Target(target.time + (until - target.time) * k / count, value))
        before = target.value
    return tuple(result)
