"""The recovery gate: a cut, then training until the metric is back, then the next; what never recovers is taken
back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import inf
from typing import Any, Literal

from lightning_compress.errors import CompressionError, did_you_mean
from lightning_compress.values import is_number, is_whole

MODES = ("max", "min")
FAILURES = ("rollback", "stop", "continue")
Verdict = Literal["waiting", "recovered", "failed"]
SMALLEST_SCALE = 1 / 8


@dataclass(frozen=True)
class Recovery:
    """After each cut the monitored metric has to come back before the next one.

    The reference is a full validation before the first cut. A cut that has not recovered after ``patience`` validations
    is rolled back and the step halved; once it would be under an eighth of the scheduled one, cutting stops and what
    has been reached is the ceiling.

    Attributes:
        monitor: name of a metric that ``validation_step`` logs.
        mode: whether "max" or "min" is better.
        tolerance: how far below (above) the reference counts as recovered; absolute.
        patience: validations that a cut has to recover.
        on_failure: "rollback" halves the step and tries again, "stop" rolls back and cuts no more, "continue" keeps the
            cut and goes on.

    Raises:
        CompressionError: a value outside of its range.

    >>> Recovery("val_acc", tolerance=0.01)
    Recovery(monitor='val_acc', mode='max', tolerance=0.01, patience=3, on_failure='rollback')
    """

    monitor: str
    mode: str = "max"
    tolerance: float = 0.005
    patience: int = 3
    on_failure: str = "rollback"

    def __post_init__(self) -> None:
        if not isinstance(self.monitor, str) or not self.monitor:
            raise CompressionError(f"Recovery(monitor={self.monitor!r}): give the name of a metric that is validated.")
        for name, value, known in (("mode", self.mode, MODES), ("on_failure", self.on_failure, FAILURES)):
            if value not in known:
                raise CompressionError(f"Recovery({name}={value!r}). {did_you_mean(str(value), known)}")
        if not is_number(self.tolerance) or not 0 <= self.tolerance < inf:
            raise CompressionError(
                f"Recovery(tolerance={self.tolerance!r}): an absolute difference of 0 or more is needed."
            )
        if not is_whole(self.patience) or self.patience < 1:
            raise CompressionError(
                f"Recovery(patience={self.patience!r}): at least one validation is needed to see a recovery."
            )

    @classmethod
    def of(cls, value: Recovery | Mapping[str, Any]) -> Recovery:
        """``value`` itself, or the Recovery that a mapping of its fields describes.

        Raises:
            CompressionError: neither; an unknown field.

        >>> Recovery.of({"monitor": "val_acc"}).patience
        3
        """
        if isinstance(value, Recovery):
            return value
        if not isinstance(value, Mapping):
            raise CompressionError(f"recover={value!r}: give a Recovery, such as Recovery({value!r}).")
        known = [field.name for field in fields(cls)]
        for name in value:
            if name not in known:
                raise CompressionError(f"recover has no field {name!r}. {did_you_mean(str(name), known)}")
        if "monitor" not in value:
            raise CompressionError("recover needs the name of a metric: monitor.")
        return cls(**value)

    def read(self, metrics: dict[str, Any]) -> float:
        """The monitored value among ``metrics``.

        Raises:
            CompressionError: it is not there; the message lists what is.
        """
        if self.monitor not in metrics:
            raise CompressionError(
                f"Recovery monitors {self.monitor!r}, which validation does not log. "
                f"{did_you_mean(self.monitor, metrics)}"
            )
        return float(metrics[self.monitor])

    def within(self, value: float, reference: float) -> bool:
        """Whether ``value`` is as good as ``reference``, give or take the tolerance; NaN never is."""
        return value >= reference - self.tolerance if self.mode == "max" else value <= reference + self.tolerance


class Gate:
    """The state of a :class:`Recovery` in a fit.

    Attributes:
        reference: the metric before the first cut; None until it is measured.
        waiting: a cut has been made and has not recovered yet.
        scale: share of the scheduled step that the next cut takes; halved by each failure.
        stopped: cutting is over; what has been reached is the ceiling.

    >>> gate = Gate(Recovery("acc", patience=2))
    >>> gate.reference = 0.97
    >>> gate.cut()
    >>> gate.observe(0.90), gate.observe(0.968)
    ('waiting', 'recovered')
    """

    def __init__(self, recovery: Recovery) -> None:
        self.recovery = recovery
        self.reference: float | None = None
        self.waiting = False
        self.scale = 1.0
        self.stopped = False
        self._checks = 0

    def cut(self) -> None:
        """A cut has been made: wait for its recovery."""
        self.waiting, self._checks = True, 0

    def observe(self, value: float) -> Verdict:
        """Judge the metric of one validation after a cut."""
        if not self.waiting or self.reference is None:
            return "waiting"
        self._checks += 1
        if self.recovery.within(value, self.reference):
            self.waiting = False
            return "recovered"
        if self._checks < self.recovery.patience:
            return "waiting"
        self.waiting = False
        return "failed"

    def fail(self) -> None:
        """Halve the step, or stop: after a failure."""
        self.waiting = False
        self.scale /= 2
        self.stopped = self.recovery.on_failure == "stop" or self.scale < SMALLEST_SCALE

    @property
    def checks(self) -> int:
        """Validations since the cut."""
        return self._checks

    def to_state(self) -> dict[str, Any]:
        """Primitives, for a checkpoint."""
        names = ("reference", "waiting", "scale", "stopped", "_checks")
        return {name: getattr(self, name) for name in names}

    def from_state(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`to_state`."""
        for name, value in state.items():
            setattr(self, name, value)
