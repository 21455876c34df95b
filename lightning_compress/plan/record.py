"""The Record of one module: what has been done to it, how to take it back, and who follows; outside the module."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol

from torch import nn

from lightning_compress.errors import PlanError
from lightning_compress.plan.edits import Edit, KeepIndices, RegrowIndices, first_names, named_tensors
from lightning_compress.plan.exits import AttachExits, DetachExits
from lightning_compress.plan.journal import Journal
from lightning_compress.plan.replacement import ReplaceModule, RestoreModule
from lightning_compress.plan.shape import Shape
from lightning_compress.plan.state import PlanEdit


class Follower(Protocol):
    """Whatever keeps something shaped like the network: masks, optimizer state, observers, taps."""

    def follow(self, edit: Edit) -> Callable[[], None] | None:
        """``edit``, which may be an inverse, has just changed the module; reshape what you keep with ``edit.carry``.

        Returns:
            What puts the follower back exactly as it was before, should the change fail further on. Without it the
            follower is told of the inverse, which brings zeros.
        """


_RECORDS: weakref.WeakKeyDictionary[nn.Module, tuple[Record, str]] = weakref.WeakKeyDictionary()
"""The Record that knows a module, and the module's name in it; "" where it is the Record's own."""


class Record:
    """Edits, their inverses, the Journal and the followers of one module.

    Attributes:
        edits: the accepted edits, in order.
        journal: what happened.
        followers: told of every edit, in order of registration.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = weakref.ref(module)
        self._inverses: list[Edit] = []
        self._aliases: dict[str, list[str]] = {}
        self.edits: list[PlanEdit] = []
        self.journal = Journal()
        self.followers: list[Follower] = []

    @classmethod
    def of(cls, module: nn.Module) -> Record:
        """The one Record of ``module``, made at the first call."""
        record = cls.find(module)
        _RECORDS[module] = record, ""
        return record

    @classmethod
    def find(cls, module: nn.Module) -> Record:
        """The Record of ``module``, or one of what is known of its parts: by themselves, or as parts of others."""
        known, place = _RECORDS.get(module, (None, ""))
        if known is not None and not place:
            return known
        found = cls(module)
        entries = {}
        for name, part in _recorded(module, ""):
            record, place = _RECORDS[part]
            found._take_over(record, place, name)
            entries[id(record)] = record.journal
        found.journal = Journal(tuple(entry for journal in entries.values() for entry in journal))
        return found

    @property
    def module(self) -> nn.Module:
        """The module itself."""
        module = self._module()
        if module is None:
            raise PlanError("The module of this record is gone.")
        return module

    def apply(self, edit: PlanEdit) -> None:
        """Make ``edit`` and tell the followers; if one of them cannot follow, everything is taken back.

        Raises:
            PlanError: the edit does not fit; nothing was touched.
        """
        self.change(0, [edit])

    def undo(self) -> None:
        """Take the last edit back; entries that come back are zeros, to be loaded by the caller."""
        self.change(1)

    def change(self, undo: int, redo: Sequence[PlanEdit] = ()) -> None:
        """Take the last ``undo`` edits back, then make those in ``redo``: all of it or, if anything fails, nothing."""
        if undo > len(self.edits):
            raise PlanError(f"There are {len(self.edits)} edits; {undo} cannot be undone.")
        shape, edits, inverses = Shape(self.module), list(self.edits), list(self._inverses)
        back: list[Callable[[], object]] = []
        try:
            for _ in range(undo):
                self.edits.pop()
                inverse = self._inverses.pop()
                self._tell(inverse, inverse.apply(self.module), back)
            for edit in redo:
                inverse = edit.apply(self.module)
                self.edits.append(edit)
                self._inverses.append(inverse)
                self._tell(edit, inverse, back)
        except BaseException:
            shape.restore()
            self.edits, self._inverses = edits, inverses
            for step in reversed(back):
                step()
            raise
        self._register()

    def declare(self, edits: Sequence[PlanEdit]) -> None:
        """Write down edits that the module has undergone elsewhere; a replaced module among them cannot come back.

        Raises:
            PlanError: the module has a Plan already, or not the shape that the edits lead to.
        """
        if self.edits:
            raise PlanError(f"The module has a Plan of {len(self.edits)} edits of its own.")
        _check_shape(self.module, edits)
        self.edits = list(edits)
        self._inverses = [_inverse(edit, None) for edit in edits]
        self._register()

    def _tell(self, edit: Edit, inverse: Edit, back: list[Callable[[], object]]) -> None:
        for follower in self.followers:
            undo = follower.follow(edit)
            back.append(undo or partial(follower.follow, inverse))

    def _register(self) -> None:
        """Let every part of the module find this Record, also when the whole is gone."""
        for name, part in self.module.named_modules():
            _RECORDS[part] = self, name
        names, self._aliases = first_names(self.module), {}
        for name, tensor in named_tensors(self.module).items():
            if names[id(tensor)] != name:
                self._aliases.setdefault(names[id(tensor)], []).append(name)

    def _take_over(self, other: Record, place: str, name: str) -> None:
        """The edits of ``other`` below ``place``, which is called ``name`` here."""
        for edit, inverse in zip(other.edits, other._inverses, strict=True):
            moved = _moved(edit, place, name, other._aliases)
            if moved is not None:
                self.edits.append(moved)
                self._inverses.append(_inverse(moved, getattr(inverse, "original", None)))


def _recorded(module: nn.Module, name: str) -> Iterable[tuple[str, nn.Module]]:
    """The outermost parts of ``module`` that a Record knows."""
    if module in _RECORDS:
        yield name, module
        return
    for key, child in module.named_children():
        yield from _recorded(child, f"{name}.{key}" if name else key)


def _inverse(edit: PlanEdit, original: nn.Module | None) -> Edit:
    if isinstance(edit, AttachExits):
        return DetachExits(edit)
    return RegrowIndices(edit) if isinstance(edit, KeepIndices) else RestoreModule(edit, original)


def _moved(edit: PlanEdit, place: str, name: str, aliases: dict[str, list[str]]) -> PlanEdit | None:
    """The part of ``edit`` that lies below ``place``, as it is called where ``place`` is called ``name``."""
    if isinstance(edit, ReplaceModule):
        inner = _inside(edit.module, place)
        return replace(edit, module=_join(name, inner)) if inner else None
    if isinstance(edit, AttachExits):
        inner = _inside(edit.place, place)
        return None if inner is None else replace(edit, place=_join(name, inner))
    slices = []
    for part in edit.slices:
        inner = next(filter(None, (_inside(one, place) for one in [part.tensor, *aliases.get(part.tensor, [])])), None)
        slices += [replace(part, tensor=_join(name, inner))] if inner else []
    places = [(change, _inside(change.module, place)) for change in edit.attributes]
    attributes = [replace(change, module=_join(name, inner)) for change, inner in places if inner is not None]
    return replace(edit, slices=tuple(slices), attributes=tuple(attributes)) if slices else None


def _inside(name: str, place: str) -> str | None:
    """``name`` seen from ``place``, "" for ``place`` itself; None if it lies elsewhere."""
    if not place or name == place:
        return "" if place else name
    return name.removeprefix(f"{place}.") if name.startswith(f"{place}.") else None


def _join(name: str, inner: str) -> str:
    return ".".join(filter(None, (name, inner)))


def _check_shape(module: nn.Module, edits: Sequence[PlanEdit]) -> None:
    """Refuse a module whose tensors are not as long as ``edits`` left them; what a spec brought is not looked at."""
    tensors, lengths = named_tensors(module), dict[tuple[str, int], int]()
    for edit in reversed(edits):
        if isinstance(edit, AttachExits):
            continue
        if isinstance(edit, ReplaceModule):
            tensors = {name: t for name, t in tensors.items() if not name.startswith(f"{edit.module}.")}
            continue
        for part in edit.slices:
            tensor, key = tensors.get(part.tensor), (part.tensor, part.dim)
            if tensor is None or tensor.dim() <= part.dim:
                continue
            length = lengths.get(key, tensor.shape[part.dim])
            if length != part.kept.numel():
                raise PlanError(
                    f"{part.tensor!r} has shape {tuple(tensor.shape)}, which is not what {edit.label!r} left. "
                    "Apply the Plan to the uncut network instead: plan.apply_to(module)."
                )
            lengths[key] = part.size
