"""Edits as primitives and index tensors, and back, with every bound checked: a file is never trusted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_compress.errors import PlanError
from lightning_compress.plan.edits import (
    ATTRIBUTES,
    Attribute,
    AttributeValue,
    KeepIndices,
    ReplaceModule,
    Slice,
    check_slice,
)
from lightning_compress.plan.specs import check_spec

MAX_SLICES, MAX_NAME, MAX_DIMENSION, MAX_SIZE = 100_000, 1_000, 8, 2**31


def edit_to_state(edit: KeepIndices | ReplaceModule) -> dict[str, Any]:
    """A dictionary of primitives and tensors that :func:`edit_from_state` reads."""
    if isinstance(edit, ReplaceModule):
        return {"kind": edit.kind, "label": edit.label, "module": edit.module, "spec": edit.spec}
    slices = [[part.tensor, part.dim, part.size, part.kept] for part in edit.slices]
    attributes = [[change.module, change.name, change.before, change.after] for change in edit.attributes]
    return {"kind": edit.kind, "label": edit.label, "slices": slices, "attributes": attributes}


def edit_from_state(state: object, position: int = 0) -> KeepIndices | ReplaceModule:
    """The edit that a file holds.

    Raises:
        PlanError: an unknown kind, a missing or surplus field, a value of another type or out of bounds.
    """
    where = f"Edit {position} of the Plan"
    if not isinstance(state, dict):
        raise PlanError(f"{where} is no mapping.")
    kind = state.get("kind")
    reader = _READERS.get(kind) if isinstance(kind, str) else None
    if reader is None:
        raise PlanError(f"{where} has the unknown kind {kind!r}; known: {', '.join(_READERS)}.")
    fields, read = reader
    if set(state) != {"kind", "label", *fields}:
        raise PlanError(
            f"{where} has the fields {sorted(map(str, state))}; expected {sorted(['kind', 'label', *fields])}."
        )
    return read(state, where)


def _read_keep(state: dict[str, Any], where: str) -> KeepIndices:
    slices = tuple(_slice(row, where) for row in _rows(state["slices"], where))
    attributes = tuple(_attribute(row, where) for row in _rows(state["attributes"], where))
    if not slices:
        raise PlanError(f"{where} keeps indices of nothing.")
    return KeepIndices(slices, attributes, _text(state["label"], where))


def _read_replace(state: dict[str, Any], where: str) -> ReplaceModule:
    check_spec(state["spec"])
    return ReplaceModule(_text(state["module"], where), state["spec"], _text(state["label"], where))


_READERS: dict[str, tuple[set[str], Callable[[dict[str, Any], str], KeepIndices | ReplaceModule]]] = {
    KeepIndices.kind: ({"slices", "attributes"}, _read_keep),
    ReplaceModule.kind: ({"module", "spec"}, _read_replace),
}


def _slice(row: list[Any], where: str) -> Slice:
    tensor, dim, size, kept = row
    part = Slice(
        _text(tensor, where),
        _integer(dim, MAX_DIMENSION, where),
        _integer(size, MAX_SIZE, where),
        _indices(kept, where),
    )
    check_slice(part)
    return part


def _attribute(row: list[Any], where: str) -> Attribute:
    module, name, before, after = row
    if name not in ATTRIBUTES:
        raise PlanError(f"{where} sets the attribute {name!r}, which no edit may.")
    return Attribute(_text(module, where), name, _value(before, where), _value(after, where))


def _rows(value: object, where: str) -> list[list[Any]]:
    if not isinstance(value, list | tuple) or len(value) > MAX_SLICES:
        raise PlanError(f"{where} has no list of at most {MAX_SLICES} slices.")
    if not all(isinstance(row, list | tuple) and len(row) == 4 for row in value):
        raise PlanError(f"{where} has a slice or attribute that is not four fields.")
    return [list(row) for row in value]


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or len(value) > MAX_NAME:
        raise PlanError(f"{where}: expected a name of at most {MAX_NAME} characters, got {type(value).__name__}.")
    return value


def _integer(value: object, limit: int, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < limit:
        raise PlanError(f"{where}: expected a number from 0 to {limit - 1}, got {value!r}.")
    return value


def _value(value: object, where: str) -> AttributeValue:
    if isinstance(value, list | tuple) and len(value) <= MAX_DIMENSION:
        return tuple(_integer(number, MAX_SIZE, where) for number in value)
    return _integer(value, MAX_SIZE, where)


def _indices(value: object, where: str) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if not isinstance(value, list) or len(value) >= MAX_SIZE or not all(type(index) is int for index in value):
        raise PlanError(f"{where}: kept indices are a tensor or a list of numbers.")
    return torch.tensor([_integer(index, MAX_SIZE, where) for index in value], dtype=torch.int64)
