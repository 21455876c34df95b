"""Options that do not go together, refused where the callback is made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_compress.distillation.bank import TeacherBank
from lightning_compress.distillation.taps import Tap
from lightning_compress.distillation.transfer import TransferSet
from lightning_compress.errors import CompressionError


def refuse_options(bank: TeacherBank, taps: Sequence[Tap], *, cache: Any, top_k: Any, transfer: Any) -> None:
    """Raise for what cannot work, with the way out.

    Args:
        bank: the teachers.
        taps: layers that are compared.
        cache: folder of their outputs, or None.
        top_k: how many of them it keeps, or None for all.
        transfer: unlabelled samples, or None.

    Raises:
        CompressionError: a value of another kind, or two that exclude each other.
    """
    if transfer is not None and not isinstance(transfer, TransferSet):
        raise CompressionError(
            f"Distillation(transfer=...) got a {type(transfer).__name__}: wrap the samples, "
            "lightning_compress.distillation.TransferSet(inputs, batch_size=64)."
        )
    if taps and bank.draws:
        raise CompressionError('pool="random" asks one teacher a step; taps need theirs each time. Use another.')
    if cache is not None:
        _refuse_cache(cache, "taps" if taps else "transfer" if transfer is not None else None)
    if top_k is not None:
        _refuse_top_k(top_k, cache, bank.outputs)


def _refuse_cache(cache: Any, beside: str | None) -> None:
    if not isinstance(cache, str | Path):
        raise CompressionError(f"Distillation(cache={cache!r}): the path of a folder.")
    if beside is not None:
        raise CompressionError(f"A cache keeps outputs of training samples alone; with {beside}= leave cache out.")


def _refuse_top_k(top_k: Any, cache: Any, outputs: str) -> None:
    if cache is None or not isinstance(top_k, int) or top_k < 1:
        raise CompressionError(
            f"Distillation(top_k={top_k!r}, cache={cache!r}): at least one class of each output in a cache, which "
            "needs a folder."
        )
    if outputs in ("labels", "values"):
        raise CompressionError(
            f"Distillation(top_k={top_k}) keeps the most probable classes, and the loss reads {outputs}. Leave top_k "
            "out."
        )
