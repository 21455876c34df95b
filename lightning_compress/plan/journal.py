"""The Journal: append-only, every decision, cut, measurement, recovery and rollback with its reason. The report reads it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lightning_compress.errors import PlanError

KINDS = ("start", "decision", "cut", "measurement", "recovery", "rollback", "stop", "finish", "note")
MAX_ENTRIES = 1_000_000

Primitive = str | int | float | bool | None


@dataclass(frozen=True)
class Entry:
    """One line of the Journal.

    Attributes:
        kind: one of :data:`KINDS`.
        text: what happened, and why, in words.
        epoch: time in epochs, fractions included; None outside of a fit.
        step: optimizer steps taken.
        data: figures behind the words.
    """

    kind: str
    text: str
    epoch: float | None = None
    step: int | None = None
    data: Mapping[str, Primitive] = field(default_factory=dict)

    def __str__(self) -> str:
        time = "" if self.epoch is None else f"epoch {self.epoch:.4g}"
        return f"{time:>12}  {self.kind:<11}  {self.text}"


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
        if kind not in KINDS:
            raise PlanError(f"No journal entry of kind {kind!r}; known: {', '.join(KINDS)}.")
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
            raise PlanError("A journal is a list of entries.")
        return cls(tuple(_entry(row) for row in state))


def _entry(row: object) -> Entry:
    if not isinstance(row, list | tuple) or len(row) != 5:
        raise PlanError(f"A journal entry has five fields, not {row!r}.")
    kind, text, epoch, step, data = row
    right = kind in KINDS and isinstance(text, str) and isinstance(data, dict)
    right = right and isinstance(epoch, int | float | None) and isinstance(step, int | None)
    if not right or not all(isinstance(k, str) and isinstance(v, Primitive) for k, v in data.items()):
        raise PlanError(f"Not a journal entry: {row!r}.")
    return Entry(kind, text, epoch, step, data)
