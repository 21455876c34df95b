"""Batches that somebody gives, looked at before they are used."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from lightning_compress.errors import CompressionError
from lightning_compress.surgery.tracing import tensors_in


def batches_of(data: Iterable[Any], what: str) -> list[Any]:
    """The batches, of whatever kind.

    Args:
        data: batches.
        what: is to be done with them, for messages.

    Raises:
        CompressionError: none, nothing in them, a single tensor, or values that are not finite.

    >>> len(batches_of([torch.ones(2, 3), torch.ones(1, 3)], "look at"))
    2
    """
    if isinstance(data, Tensor) or not isinstance(data, Iterable):
        raise CompressionError(f"data= is a {type(data).__name__}; give batches, a list of one if need be: data=[...].")
    batches = list(data)
    found = [list(tensors_in(batch)) for batch in batches]
    sizes = [tensor.numel() for tensors in found for tensor in tensors]
    if not batches or (sizes and not any(sizes)):
        raise CompressionError(f"There is no data to {what}: data= is empty.")
    for number, tensors in enumerate(found):
        if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
            raise CompressionError(f"Batch {number} of data= holds values that are not finite (NaN or infinite).")
    return batches
