"""The shortest Plan with the same outcome: cuts that follow each other become one."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby

from lightning_compress.plan.edits import Attribute, KeepIndices, Slice
from lightning_compress.plan.plan import Plan
from lightning_compress.plan.state import PlanEdit


def condensed(plan: Plan) -> Plan:
    """A Plan that leads to the same network, with one edit in the place of cuts in a row.

    What the rounds were in between is lost; the Journal has it.

    >>> import torch
    >>> def cut(size, *kept):
    ...     return KeepIndices((Slice("weight", 0, size, torch.tensor(kept)),))
    >>> (edit,) = condensed(Plan((cut(4, 0, 2, 3), cut(3, 1, 2))))
    >>> edit.slices[0].size, edit.slices[0].kept.tolist()
    (4, [2, 3])
    """
    edits: list[PlanEdit] = []
    for _, run in groupby(plan.edits, key=lambda edit: isinstance(edit, KeepIndices)):
        alike = list(run)
        cuts = [edit for edit in alike if isinstance(edit, KeepIndices)]
        edits += [_joined(cuts)] if cuts else alike
    return Plan(tuple(edits))


def _joined(cuts: list[KeepIndices]) -> KeepIndices:
    slices: dict[tuple[str, int], Slice] = {}
    attributes: dict[tuple[str, str], Attribute] = {}
    for cut in cuts:
        for part in cut.slices:
            before = slices.get((part.tensor, part.dim))
            joined = part if before is None else replace(before, kept=before.kept[part.kept])
            slices[part.tensor, part.dim] = joined
        for change in cut.attributes:
            first = attributes.setdefault((change.module, change.name), change)
            attributes[change.module, change.name] = replace(first, after=change.after)
    label = cuts[0].label if len(cuts) == 1 else f"{len(cuts)} cuts in one"
    return KeepIndices(tuple(slices.values()), tuple(attributes.values()), label)
