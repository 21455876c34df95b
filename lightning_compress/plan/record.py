"""The Record of one module: what has been done to it, how to take it back, and who follows. It lives outside the module."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

from torch import nn

from lightning_compress.errors import PlanError
from lightning_compress.plan.edits import Edit, KeepIndices, RegrowIndices, ReplaceModule, RestoreModule, tensor_places
from lightning_compress.plan.journal import Journal


class Follower(Protocol):
    """Whatever keeps something shaped like the network: masks, optimizer state, observers, taps."""

    def follow(self, edit: Edit) -> None:
        """The module has just been changed by ``edit`` (which may be an inverse); reshape what you keep with ``edit.carry``."""


@runtime_checkable
class CheckingFollower(Follower, Protocol):
    """A follower that cannot follow every edit, and says so before anything is touched."""

    def check(self, edit: Edit) -> None:
        """Raise if ``edit`` cannot be followed."""


_RECORDS: weakref.WeakKeyDictionary[nn.Module, Record] = weakref.WeakKeyDictionary()


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
        self.edits: list[KeepIndices | ReplaceModule] = []
        self.journal = Journal()
        self.followers: list[Follower] = []

    @classmethod
    def of(cls, module: nn.Module) -> Record:
        """The one Record of ``module``, made at the first call."""
        if module not in _RECORDS:
            _RECORDS[module] = cls(module)
        return _RECORDS[module]

    @property
    def module(self) -> nn.Module:
        """The module itself."""
        module = self._module()
        if module is None:
            raise PlanError("The module of this record is gone.")
        return module

    def apply(self, edit: KeepIndices | ReplaceModule) -> None:
        """Make ``edit`` and tell the followers; if one of them cannot follow, everything is taken back.

        Raises:
            PlanError: the edit does not fit; nothing was touched.
        """
        self._inverses.append(self._make(edit))
        self.edits.append(edit)

    def undo(self) -> None:
        """Take the last edit back; entries that come back are zeros, to be loaded by the caller."""
        if not self._inverses:
            raise PlanError("There is no edit to undo.")
        self._make(self._inverses[-1])
        self._inverses.pop()
        self.edits.pop()

    def declare(self, edits: Sequence[KeepIndices | ReplaceModule]) -> None:
        """Write down edits that the module has undergone elsewhere; a replaced module among them cannot come back."""
        if self.edits:
            raise PlanError(f"The module has a Plan of {len(self.edits)} edits of its own.")
        self.edits = list(edits)
        self._inverses = [RegrowIndices(e) if isinstance(e, KeepIndices) else RestoreModule(e, None) for e in edits]

    def _make(self, edit: Edit) -> Edit:
        """Check with everybody, change the module, tell the followers; returns the inverse."""
        edit.check(self.module)
        for follower in self.followers:
            if isinstance(follower, CheckingFollower):
                follower.check(edit)
        places = list(tensor_places(self.module))
        inverse = edit.apply(self.module)
        done: list[Follower] = []
        try:
            for follower in self.followers:
                follower.follow(edit)
                done.append(follower)
        except Exception:
            inverse.apply(self.module)
            for _, owner, key, tensor in places:
                setattr(owner, key, tensor)
            for follower in done:
                follower.follow(inverse)
            raise
        return inverse


def find_record(module: nn.Module) -> Record | None:
    """The Record of ``module``, or for a part of a recorded network a Record with the edits below it; None if there is none."""
    if module in _RECORDS:
        return _RECORDS[module]
    for root, record in list(_RECORDS.items()):
        for name, part in root.named_modules():
            if part is module:
                below = Record(module)
                below.edits = [edit for edit in (_below(edit, f"{name}.") for edit in record.edits) if edit is not None]
                return below
    return None


def _below(edit: KeepIndices | ReplaceModule, prefix: str) -> KeepIndices | ReplaceModule | None:
    """The part of ``edit`` that lies below ``prefix``, with names relative to it."""
    if isinstance(edit, ReplaceModule):
        return replace(edit, module=edit.module.removeprefix(prefix)) if edit.module.startswith(prefix) else None
    slices = tuple(replace(s, tensor=s.tensor.removeprefix(prefix)) for s in edit.slices if s.tensor.startswith(prefix))
    attributes = tuple(
        replace(a, module=f"{a.module}.".removeprefix(prefix).removesuffix("."))
        for a in edit.attributes
        if f"{a.module}.".startswith(prefix)
    )
    return replace(edit, slices=slices, attributes=attributes) if slices else None
