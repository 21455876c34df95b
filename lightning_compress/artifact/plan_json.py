"""A Plan's state in JSON: kept indices as bitmaps, which are shorter than lists of numbers."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import numpy as np
import torch

from lightning_compress.artifact.format_error import FormatError
from lightning_compress.errors import PlanError
from lightning_compress.plan import Plan


def plan_to_json(plan: Plan) -> Any:
    """Primitives, for ``json.dumps``; None for an empty Plan."""
    if not len(plan):
        return None
    state = plan.to_state()
    for edit in state["edits"]:
        if "slices" in edit:
            edit["slices"] = [[name, dim, size, _pack(kept, size)] for name, dim, size, kept in edit["slices"]]
    return state


def plan_from_json(state: Any, where: str) -> Plan:
    """Back from :func:`plan_to_json`; every field is checked and bounded.

    Raises:
        FormatError: it is not a Plan, or of a later version.

    >>> len(plan_from_json(None, "x"))
    0
    """
    if state is None:
        return Plan()
    try:
        if isinstance(state, dict) and isinstance(state.get("edits"), list):
            state = {**state, "edits": [_unpack_edit(edit) for edit in state["edits"]]}
        return Plan.from_state(state)
    except (PlanError, binascii.Error, ValueError) as error:
        raise FormatError(f"{where}: the Plan in it is not sound ({error}).") from None


def _pack(kept: torch.Tensor, size: int) -> str:
    mask = np.zeros(size, np.bool_)
    mask[kept.numpy()] = True
    return base64.b64encode(np.packbits(mask).tobytes()).decode()


def _unpack_edit(edit: Any) -> Any:
    if not isinstance(edit, dict) or not isinstance(edit.get("slices"), list):
        return edit
    return {**edit, "slices": [_unpack_slice(row) for row in edit["slices"]]}


def _unpack_slice(row: Any) -> Any:
    if not isinstance(row, list) or len(row) != 4 or not isinstance(row[3], str):
        raise PlanError("kept indices are no bitmap")
    bits = np.unpackbits(np.frombuffer(base64.b64decode(row[3], validate=True), np.uint8))
    return [*row[:3], torch.from_numpy(np.flatnonzero(bits))]
