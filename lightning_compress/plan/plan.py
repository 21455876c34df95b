"""The Plan: the accepted edits in order; with it a checkpoint says what shape its network has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from reprlib import repr as short
from typing import Any

from torch import nn

from lightning_compress.errors import PlanError
from lightning_compress.plan.edits import named_tensors
from lightning_compress.plan.exits import AttachExits
from lightning_compress.plan.record import Record
from lightning_compress.plan.replacement import ReplaceModule
from lightning_compress.plan.state import PlanEdit, edits_from_state, edits_to_state

VERSION = 1
GROWTH, SMALL = 16, 2**24


@dataclass(frozen=True)
class Plan:
    """An ordered, versioned list of edits, in primitives and index tensors only.

    >>> len(Plan.of(nn.Linear(2, 2)))
    0
    """

    edits: tuple[PlanEdit, ...] = ()

    @classmethod
    def of(cls, module: nn.Module) -> Plan:
        """What has been done to ``module``; empty where nothing has.

        A submodule of a network that was edited has the part of its Plan that lies below it, and a module built around
        an edited one has that one's. A ``deepcopy`` starts with an empty Plan; :meth:`declare` tells it.
        """
        return cls(tuple(Record.find(module).edits))

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
        difference = Plan.diff(Plan(tuple(record.edits)), self)
        _check_growth(module, difference.redo)
        record.change(len(difference.undo), difference.redo)

    def declare(self, module: nn.Module) -> None:
        """State that ``module`` has this Plan's shape already (a deepcopy of a compressed network, say); edits nothing.

        Raises:
            PlanError: it has another shape, or a Plan of its own.
        """
        Record.of(module).declare(self.edits)

    def __len__(self) -> int:
        return len(self.edits)

    def __iter__(self) -> Iterator[PlanEdit]:
        return iter(self.edits)

    def to_state(self) -> dict[str, Any]:
        """Primitives and tensors, loadable with ``weights_only=True``."""
        return {"version": VERSION, "edits": edits_to_state(self.edits)}

    @classmethod
    def from_state(cls, state: object) -> Plan:
        """The Plan that a file holds; every field is checked and bounded.

        Raises:
            PlanError: not a Plan, or of a later version.
        """
        if not isinstance(state, dict) or set(state) != {"version", "edits"}:
            raise PlanError("A Plan has a version and edits.")
        version = state["version"]
        if type(version) is not int or version != VERSION:
            raise PlanError(f"The Plan has version {short(version)}; this release reads version {VERSION}. Upgrade.")
        return cls(edits_from_state(state["edits"]))


@dataclass(frozen=True)
class PlanDifference:
    """``common`` edits are shared; ``undo`` are to be taken back, last first; ``redo`` are to be made."""

    common: int
    undo: tuple[PlanEdit, ...]
    redo: tuple[PlanEdit, ...]

    def __str__(self) -> str:
        lines = [f"{self.common} edits in common"]
        lines += [f"- {edit.label}" for edit in reversed(self.undo)]
        lines += [f"+ {edit.label}" for edit in self.redo]
        return "\n".join(lines)


def _check_growth(module: nn.Module, edits: Sequence[PlanEdit]) -> None:
    """Refuse replacements out of all proportion to the network: what they replace is kept, so each takes memory."""
    asked = sum(edit.extent.elements for edit in edits if isinstance(edit, ReplaceModule | AttachExits))
    if asked > SMALL:
        present = sum(tensor.numel() for tensor in {id(t): t for t in named_tensors(module).values()}.values())
        if asked > GROWTH * present:
            raise PlanError(
                f"The Plan puts modules of {asked:,} numbers into a network of {present:,}: no compression."
            )
