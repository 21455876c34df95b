"""A checkpoint without what only the distillation needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lightning_compress.errors import CompressionError
from lightning_compress.training import AtomicCheckpointIO

OURS = "Distillation"


def strip(path: str | Path, to: str | Path | None = None) -> int:
    """Take the adapters of the taps, with their moments, out of a checkpoint; the file is written whole or not at all.

    The rest stays: weights, optimizers, Plan, other callbacks. Such a file resumes with or without teachers; with taps,
    their adapters begin anew.

    Args:
        path: of a checkpoint.
        to: where the result goes; None puts it in the place of ``path``.

    Returns:
        How many distillations were in the file.

    Raises:
        CompressionError: there is no such checkpoint, or it cannot be read.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "last.ckpt")
    >>> torch.save({"state_dict": {}, "callbacks": {"Distillation": {"adapters": None}, "Replay": {}}}, path)
    >>> strip(path), torch.load(path)["callbacks"]
    (1, {'Replay': {}})
    """
    if not Path(path).is_file():
        raise CompressionError(f"There is no checkpoint {str(path)!r} to strip.")
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CompressionError(f"{str(path)!r} is no checkpoint that can be read: {error}") from error
    callbacks: dict[str, Any] = checkpoint.get("callbacks", {})
    kept = {key: _without(state) for key, state in callbacks.items() if not _is_ours(key)}
    AtomicCheckpointIO().save_checkpoint({**checkpoint, "callbacks": kept}, to or path)
    return len(callbacks) - len(kept)


def _is_ours(key: object) -> bool:
    return str(key).partition("[")[0] == OURS


def _without(state: Any) -> Any:
    """What another callback keeps, less the states of ours in its snapshot of a cut that waits for its recovery."""
    if isinstance(state, dict):
        return {key: _without(value) for key, value in state.items() if not _is_ours(key)}
    return state
