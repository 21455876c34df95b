"""A Plan and its Journal in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_compress.errors import PlanError
from lightning_compress.plan.exits import AttachExits
from lightning_compress.plan.journal import Journal
from lightning_compress.plan.plan import Plan
from lightning_compress.plan.record import Record
from lightning_compress.plan.replacement import ReplaceModule
from lightning_compress.plan.state import PlanEdit

CHECKPOINT_KEY = "lightning_compress"
"""Where a checkpoint keeps the Plan and the Journal."""

LONGEST = 200


def explain(source: str | Path | nn.Module | Plan) -> str:
    """What has been done to a network, edit by edit, and when and why.

    Args:
        source: a checkpoint, the module itself, or a Plan.

    Raises:
        PlanError: the file is no checkpoint, or carries no Plan of this package.

    >>> print(explain(Plan()))
    Plan: no edits; the network has its original shape.
    """
    plan, journal = _read(source)
    lines = [f"Plan: {len(plan)} edits." if len(plan) else "Plan: no edits; the network has its original shape."]
    lines += [f"{number:>4}. {_describe(edit)}" for number, edit in enumerate(plan, start=1)]
    if len(journal):
        lines += ["", f"Journal: {len(journal)} entries.", *(str(entry) for entry in journal)]
    return "\n".join(lines)


def read_checkpoint(checkpoint: dict[str, Any]) -> tuple[Plan, Journal] | None:
    """The Plan and the Journal in a loaded checkpoint; None where it has neither."""
    state = checkpoint.get(CHECKPOINT_KEY)
    if state is None:
        return None
    if not isinstance(state, dict) or not {"plan", "journal"} <= set(state):
        raise PlanError(f"The checkpoint's entry {CHECKPOINT_KEY!r} has no plan and journal.")
    return Plan.from_state(state["plan"]), Journal.from_state(state["journal"])


def _read(source: str | Path | nn.Module | Plan) -> tuple[Plan, Journal]:
    if isinstance(source, Plan):
        return source, Journal()
    if isinstance(source, nn.Module):
        return Plan.of(source), Record.find(source).journal
    try:
        checkpoint = torch.load(source, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # noise in the place of a pickle raises anything
        raise PlanError(f"{str(source)!r} is no checkpoint that can be read safely: {error}") from error
    found = read_checkpoint(checkpoint) if isinstance(checkpoint, dict) else None
    if found is None:
        raise PlanError(
            f"{str(source)!r} carries no Plan: none of this package's callbacks was in the Trainer that wrote it."
        )
    return found


def _describe(edit: PlanEdit) -> str:
    label = edit.label if len(edit.label) <= LONGEST else f"{edit.label[:LONGEST]}..."
    if isinstance(edit, ReplaceModule):
        return f"{label or 'replace'}: {edit.module!r} became {edit.spec['type']}"
    if isinstance(edit, AttachExits):
        return f"{label or 'exits'}: {len(edit.points)} heads, behind {', '.join(map(repr, edit.points))}"
    widths = [
        f"{c.module}.{c.name} {c.before} -> {c.after}" for c in edit.attributes if c.name.startswith(("out", "hidden"))
    ]
    return f"{label or 'keep'}: {', '.join(widths) or f'{len(edit.slices)} tensors cut'}"
