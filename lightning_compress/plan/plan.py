"""The Plan: the accepted edits in order; with it a checkpoint says what shape its network has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from lightning_compress.errors import PlanError
from lightning_compress.plan.edits import KeepIndices, ReplaceModule
from lightning_compress.plan.record import Record, find_record
from lightning_compress.plan.state import edit_from_state, edit_to_state

VERSION = 1
MAX_EDITS = 100_000


@dataclass(frozen=True)
class Plan:
    """An ordered, versioned list of edits, in primitives and index tensors only.

    >>> len(Plan.of(nn.Linear(2, 2)))
    0
    """

    edits: tuple[KeepIndices | ReplaceModule, ...] = ()

    @classmethod
    def of(cls, module: nn.Module) -> Plan:
        """What has been done to ``module``; empty where nothing has.

        A submodule of a network that was edited has the part of its Plan that lies below it. A ``deepcopy`` starts with an empty Plan;
        :meth:`declare` tells it.
        """
        record = find_record(module)
        return cls(tuple(record.edits)) if record is not None else cls()

    @classmethod
    def diff(cls, a: Plan, b: Plan) -> PlanDifference:
        """What leads from ``a`` to ``b``: edits to take back, then edits to make."""
        common = 0
        for mine, theirs in zip(a.edits, b.edits, strict=False):
            if mine != theirs:
                break
            common += 1
        return PlanDifference(common, a.edits[common:], b.edits[common:])

    def apply_to(self, module: nn.Module) -> None:
        """Give ``module`` the shape of this Plan: back to the common prefix with its own, then forwards.

        Raises:
            PlanError: the Plan does not fit; the module then is as it was.
        """
        record = Record.of(module)
        before = Plan(tuple(record.edits))
        difference = Plan.diff(before, self)
        try:
            for _ in difference.undo:
                record.undo()
            for edit in difference.redo:
                record.apply(edit)
        except Exception:
            back = Plan.diff(Plan(tuple(record.edits)), before)
            for _ in back.undo:
                record.undo()
            for edit in back.redo:
                record.apply(edit)
            raise

    def declare(self, module: nn.Module) -> None:
        """State that ``module`` has this Plan's shape already (a deepcopy of a compressed network, say); edits nothing."""
        Record.of(module).declare(self.edits)

    def __len__(self) -> int:
        return len(self.edits)

    def __iter__(self) -> Iterator[KeepIndices | ReplaceModule]:
        return iter(self.edits)

    def to_state(self) -> dict[str, Any]:
        """Primitives and tensors, loadable with ``weights_only=True``."""
        return {"version": VERSION, "edits": [edit_to_state(edit) for edit in self.edits]}

    @classmethod
    def from_state(cls, state: object) -> Plan:
        """The Plan that a file holds; every field is checked and bounded.

        Raises:
            PlanError: not a Plan, or of a later version.
        """
        if not isinstance(state, dict) or set(state) != {"version", "edits"}:
            raise PlanError("A Plan has a version and edits.")
        if state["version"] != VERSION:
            raise PlanError(
                f"The Plan has version {state['version']!r}; this release reads version {VERSION}. Upgrade."
            )
        if not isinstance(state["edits"], list) or len(state["edits"]) > MAX_EDITS:
            raise PlanError(f"A Plan has a list of at most {MAX_EDITS} edits.")
        return cls(tuple(edit_from_state(edit, position) for position, edit in enumerate(state["edits"])))


@dataclass(frozen=True)
class PlanDifference:
    """``common`` edits are shared; ``undo`` are to be taken back, last first; ``redo`` are to be made."""

    common: int
    undo: tuple[KeepIndices | ReplaceModule, ...]
    redo: tuple[KeepIndices | ReplaceModule, ...]

    def __str__(self) -> str:
        lines = [f"{self.common} edits in common"]
        lines += [f"- {edit.label}" for edit in self.undo]
        lines += [f"+ {edit.label}" for edit in self.redo]
        return "\n".join(lines)
