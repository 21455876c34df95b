"""A short name for what a teacher is: the hash of its parameters and buffers."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.errors import CompressionError


def fingerprint(teacher: nn.Module | Callable[..., Any]) -> str:
    """SHA-256 of a module's parameters and buffers with their names, or of another object's pickle.

    Raises:
        CompressionError: a callable that cannot be pickled, or a module without weights.

    >>> layer = nn.Linear(2, 2)
    >>> before = fingerprint(layer)
    >>> _ = nn.init.zeros_(layer.bias)
    >>> fingerprint(layer) == before
    False
    """
    digest = hashlib.sha256()
    if not isinstance(teacher, nn.Module):
        try:
            digest.update(pickle.dumps(teacher))
        except Exception as error:
            raise CompressionError(
                f"A teacher of type {type(teacher).__name__} cannot be pickled, so nothing says whether it is the same "
                "later. Define it at the top level of a file, or pass a module."
            ) from error
        return digest.hexdigest()
    for name, tensor in [*teacher.named_parameters(), *teacher.named_buffers()]:
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    if tensor.is_meta:
        raise CompressionError("A teacher is on the meta device, so it has no weights yet: load them first.")
    data: bytes = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return data
