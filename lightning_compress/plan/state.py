"""Edits as primitives and index tensors, and back, with every bound checked: a file is never trusted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from reprlib import repr as short
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lightning_compress.errors import PlanError
from lightning_compress.plan.edits import MAX_DIMENSION, MAX_SIZE, Attribute, AttributeValue, KeepIndices, Slice
from lightning_compress.plan.exits import AttachExits
from lightning_compress.plan.replacement import ReplaceModule

PlanEdit: TypeAlias = KeepIndices | ReplaceModule | AttachExits
"""An edit that a Plan may hold; the others are inverses."""

MAX_NAME, MAX_LABEL = 1_000, 2**20
LIMITS = {"edits": 100_000, "slices": 2**18, "attributes": 2**18, "indices": 2**28, "modules": 20_000}
"""What one Plan may hold in all: a small file can name one large thing many times."""


def edits_to_state(edits: Sequence[PlanEdit]) -> list[dict[str, Any]]:
    """Dictionaries of primitives and tensors that :func:`edits_from_state` reads."""
    return [_edit_to_state(edit) for edit in edits]


def edits_from_state(states: object) -> tuple[PlanEdit, ...]:
    """The edits that a file holds.

    Args:
        states: what :func:`edits_to_state` wrote; lists in the place of tensors and tuples (JSON) will do.

    Raises:
        PlanError: an unknown kind, a missing or surplus field, a value of another type or out of bounds.
    """
    if not isinstance(states, list):
        raise PlanError(f"A Plan has a list of edits, not {type(states).__name__}.")
    reader = _Reader()
    reader.take("edits", len(states))
    return tuple(reader.edit(state, f"Edit {position} of the Plan") for position, state in enumerate(states))


def _edit_to_state(edit: PlanEdit) -> dict[str, Any]:
    state: dict[str, Any] = {"kind": edit.kind, "label": edit.label[:MAX_LABEL]}
    if isinstance(edit, ReplaceModule):
        return {**state, "module": edit.module, "spec": edit.spec}
    if isinstance(edit, AttachExits):
        lists = {"points": list(edit.points), "pools": list(edit.pools), "heads": list(edit.heads)}
        return {**state, "place": edit.place, "confidence": edit.confidence, **lists}
    slices = [[part.tensor, part.dim, part.size, part.kept] for part in edit.slices]
    attributes = [[change.module, change.name, change.before, change.after] for change in edit.attributes]
    return {**state, "slices": slices, "attributes": attributes}


class _Reader:
    """Reads the edits of one Plan and counts what it has read."""

    def __init__(self) -> None:
        self._left = dict(LIMITS)
        self._kinds: dict[object, tuple[set[str], Callable[[dict[str, Any], str], PlanEdit]]] = {
            KeepIndices.kind: ({"slices", "attributes"}, self._keep),
            ReplaceModule.kind: ({"module", "spec"}, self._replace),
            AttachExits.kind: ({"place", "points", "pools", "confidence", "heads"}, self._exits),
        }

    def take(self, what: str, number: int) -> None:
        """Count ``number`` more of :data:`LIMITS`."""
        self._left[what] -= number
        if self._left[what] < 0:
            raise PlanError(f"The Plan has more than {LIMITS[what]:,} {what}.")

    def edit(self, state: object, where: str) -> PlanEdit:
        """One edit."""
        if not isinstance(state, dict):
            raise PlanError(f"{where} is no mapping.")
        kind = state.get("kind")
        if not isinstance(kind, str) or kind not in self._kinds:
            raise PlanError(f"{where} has the unknown kind {short(kind)}; known: {', '.join(map(str, self._kinds))}.")
        fields, read = self._kinds[kind]
        if set(state) != {"kind", "label", *fields}:
            raise PlanError(f"{where} has the fields {short(list(state))}; expected kind, label, {', '.join(fields)}.")
        return read(state, where)

    def _keep(self, state: dict[str, Any], where: str) -> KeepIndices:
        slices = tuple(self._slice(row, where) for row in self._rows("slices", state, where))
        attributes = tuple(_attribute(row, where) for row in self._rows("attributes", state, where))
        if not slices:
            raise PlanError(f"{where} keeps indices of nothing.")
        return KeepIndices(slices, attributes, _text(state["label"], where, MAX_LABEL))

    def _replace(self, state: dict[str, Any], where: str) -> ReplaceModule:
        edit = ReplaceModule(_text(state["module"], where), state["spec"], _text(state["label"], where, MAX_LABEL))
        self.take("modules", edit.extent.modules)
        return edit

    def _exits(self, state: dict[str, Any], where: str) -> AttachExits:
        lists = [state[key] for key in ("points", "pools", "heads")]
        if not all(isinstance(one, list | tuple) for one in lists):
            raise PlanError(f"{where}: points, pools and heads are lists.")
        points, pools, heads = map(tuple, lists)
        place, confidence = _text(state["place"], where), _text(state["confidence"], where)
        edit = AttachExits(place, points, pools, confidence, heads, _text(state["label"], where, MAX_LABEL))
        self.take("modules", edit.extent.modules)
        return edit

    def _rows(self, what: str, state: dict[str, Any], where: str) -> list[list[Any] | tuple[Any, ...]]:
        rows = state[what]
        if not isinstance(rows, list | tuple):
            raise PlanError(f"{where} has no list of {what}.")
        self.take(what, len(rows))
        if not all(isinstance(row, list | tuple) and len(row) == 4 for row in rows):
            raise PlanError(f"{where} has among its {what} one that is not four fields.")
        return list(rows)

    def _slice(self, row: Sequence[Any], where: str) -> Slice:
        tensor, dim, size, kept = row
        if not isinstance(kept, Tensor | list):
            raise PlanError(f"{where}: kept indices are a tensor or a list of numbers, not {type(kept).__name__}.")
        self.take("indices", len(kept) if isinstance(kept, list) else kept.numel())
        if isinstance(kept, list):
            kept = torch.tensor([_integer(index, MAX_SIZE, where) for index in kept], dtype=torch.int64)
        name = _text(tensor, where)
        return Slice(name, _integer(dim, MAX_DIMENSION - 1, where), _integer(size, MAX_SIZE, where), kept)


def _attribute(row: Sequence[Any], where: str) -> Attribute:
    module, name, before, after = row
    return Attribute(_text(module, where), _text(name, where), _value(before, where), _value(after, where))


def _value(value: object, where: str) -> AttributeValue:
    if isinstance(value, list | tuple) and len(value) <= MAX_DIMENSION:
        return tuple(_integer(number, MAX_SIZE, where) for number in value)
    return _integer(value, MAX_SIZE, where)


def _text(value: object, where: str, limit: int = MAX_NAME) -> str:
    if not isinstance(value, str) or len(value) > limit:
        raise PlanError(f"{where}: expected a text of at most {limit} characters, got {short(value)}.")
    return value


def _integer(value: object, largest: int, where: str) -> int:
    if type(value) is not int or not 0 <= value <= largest:
        raise PlanError(f"{where}: expected a number from 0 to {largest}, got {short(value)}.")
    return value
