"""Exit heads in checkpoints that are written while they are trained, and thus outside of the network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from lightning_compress.dynamic.placement import edit_of, hang_on
from lightning_compress.errors import CompressionError, did_you_mean
from lightning_compress.plan import CHECKPOINT_KEY, ExitBank, Plan
from lightning_compress.plan.specs import build_module

STATE_KEY = "exits"


def state_of_bank(place: str, bank: ExitBank) -> dict[str, Any]:
    """The edit that hangs the heads on ``place``, and their tensors: loadable with ``weights_only=True``."""
    plan = Plan((edit_of(place, bank),)).to_state()
    return {"plan": plan, "tensors": {key: one.clone() for key, one in bank.state_dict().items()}}


def bank_from_state(state: Mapping[str, Any]) -> ExitBank:
    """The heads of :func:`state_of_bank`."""
    edit: Any = Plan.from_state(state["plan"]).edits[0]
    bank = ExitBank(edit.points, edit.pools, edit.confidence, [build_module(spec) for spec in edit.heads])
    kinds = {one.dtype for key, one in state["tensors"].items() if key.startswith("heads.")}
    if len(kinds) == 1:
        bank.heads.to(dtype=kinds.pop())
    bank.load_state_dict(state["tensors"])
    return bank


def load_exits(module: nn.Module, path: str | Path, name: str = "EarlyExits") -> ExitBank:
    """Hang the exits of a checkpoint that was written during a fit on ``module``, which has the file's weights.

    A checkpoint or model file that was written after the fit has them in the module already. A model file that was
    written amid the fit has the network alone.

    Args:
        module: the LightningModule.
        path: of the checkpoint.
        name: the callback's key there.

    Raises:
        CompressionError: the file is no checkpoint, or has no such exits.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError) as error:
        raise CompressionError(
            f"{str(path)!r} is no checkpoint. A model file has the exits in its network (load_compressed), or none if "
            "it was written amid the fit: SaveCompressed writes last.lcz with exits when the fit ends."
        ) from error
    banks = {key: one for key, one in checkpoint.get(CHECKPOINT_KEY, {}).get(STATE_KEY, {}).items() if one is not None}
    if name not in banks:
        hint = did_you_mean(name, banks) if banks else "A file of the end of the fit has them in the module already."
        raise CompressionError(f"{str(path)!r} has no exits of {name!r} beside its network. {hint}")
    place = Plan.from_state(banks[name]["plan"]).edits[0].place  # type: ignore[union-attr]
    return hang_on(module, place, bank_from_state(banks[name]))
