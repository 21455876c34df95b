"""The Journal: append-only, every decision, cut, measurement, recovery and rollback with its reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import isfinite
from reprlib import repr as short
from typing import Any

from lightning_compress.errors import PlanError

KINDS = ("start", "decision", "cut", "measurement", "recovery", "rollback", "stop", "finish", "note")
MAX_ENTRIES, MAX_FIGURES = 2**20, 2**24

Primitive = str | int | float | bool | None
_PRIMITIVES = (str, int, float, bool, type(None))


@dataclass(frozen=True)
class Entry:
    """One line of the Journal.

    Attributes:
        kind: one of :data:`KINDS`.
        text: what happened, and why, in words.
        epoch: time in epochs, fractions included; None outside of a fit.
        step: optimizer steps taken.
        data: figures behind the words.

    Raises:
        PlanError: a field that is not what it should be.
    """

    kind: str
    text: str
    epoch: float | None = None
    step: int | None = None
    data: Mapping[str, Primitive] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise PlanError(f"No journal entry of kind {short(self.kind)}; known: {', '.join(KINDS)}.")
        timed = type(self.epoch) in (int, float, type(None)) and isfinite(self.epoch or 0)
        if not timed or type(self.text) is not str or type(self.step) not in (int, type(None)):
            raise PlanError(f"Not a journal entry: {short((self.text, self.epoch, self.step))}.")
        for name, value in self.data.items():
            if type(name) is not str or type(value) not in _PRIMITIVES:
                raise PlanError(f"A journal entry's {short(name)} is a {type(value).__name__}, not a number or a text.")
        object.__setattr__(self, "data", dict(self.data))

    def __str__(self) -> str:
        time = "" if self.epoch is None else f"epoch {self.epoch:.4g}"
        figures = (f"{name} {value:.4g}" for name, value in self.data.items() if isinstance(value, float))
        text = f"{self.text}: {', '.join(figures)}" if self.kind == "measurement" else self.text
        return f"{time:>12}  {self.kind:<11}  {text}"


class Journal:
    """Entries in the order in which they were written; nothing is ever taken out, not even by a rollback.

    >>> journal = Journal()
    >>> journal.add("cut", "took 4 neurons out of 'fc1'", epoch=3, step=120, neurons=4)
    >>> [entry.data["neurons"] for entry in journal if entry.kind == "cut"]
    [4]
    """

    def __init__(self, entries: tuple[Entry, ...] = ()) -> None:
        self._entries = list(entries)

    def add(
        self, kind: str, text: str, *, epoch: float | None = None, step: int | None = None, **data: Primitive
    ) -> None:
        """Append an entry; ``data`` holds primitives."""
        self._entries.append(Entry(kind, text, epoch, step, data))

    def __iter__(self) -> Iterator[Entry]:
        return iter(tuple(self._entries))

    def __len__(self) -> int:
        return len(self._entries)

    def to_state(self) -> list[list[Any]]:
        """Primitives only, for a checkpoint."""
        return [[entry.kind, entry.text, entry.epoch, entry.step, dict(entry.data)] for entry in self._entries]

    @classmethod
    def from_state(cls, state: object) -> Journal:
        """The Journal that a file holds.

        Raises:
            PlanError: not the shape that :meth:`to_state` writes.
        """
        if not isinstance(state, list) or len(state) > MAX_ENTRIES:
            raise PlanError(f"A journal is a list of at most {MAX_ENTRIES} entries.")
        entries, figures = [], 0
        for row in state:
            if not isinstance(row, list | tuple) or len(row) != 5 or not isinstance(row[4], dict):
                raise PlanError(f"A journal entry has five fields, the last a mapping; not {short(row)}.")
            figures += len(row[4])
            if figures > MAX_FIGURES:
                raise PlanError(f"A journal holds at most {MAX_FIGURES} figures.")
            entries.append(Entry(*row))
        return cls(tuple(entries))
