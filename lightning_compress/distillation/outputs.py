"""Where the logits lie in what a network returns, and the labels in a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lightning_compress.errors import CompressionError

LABEL_KEYS = ("labels", "label", "targets", "target", "y", "classes")


def logits_in(output: object) -> Tensor:
    """A tensor itself, what is called ``logits`` in a mapping or an object, or the first tensor of a tuple.

    Raises:
        CompressionError: there is none of these.

    >>> import torch
    >>> logits_in({"hidden": 0, "logits": torch.ones(2)}).tolist()
    [1.0, 1.0]
    """
    if isinstance(output, Tensor):
        return output
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(named, Tensor):
        return named
    if isinstance(output, tuple | list):
        for part in output:
            if isinstance(part, Tensor):
                return part
    raise CompressionError(
        f"No logits in an output of type {type(output).__name__}: return a tensor, a tuple that begins with it, or "
        'something with "logits"; or name the submodule that does with student="...".'
    )


def labels_in(batch: Any) -> Tensor | None:
    """The second tensor of a tuple, or what is called ``labels``, ``targets`` or the like; None where there is none.

    >>> import torch
    >>> labels_in((torch.zeros(2, 3), torch.tensor([0, 1]))).tolist()
    [0, 1]
    """
    if isinstance(batch, Mapping):
        return next((batch[key] for key in LABEL_KEYS if isinstance(batch.get(key), Tensor)), None)
    if isinstance(batch, tuple | list) and len(batch) > 1 and isinstance(batch[1], Tensor):
        return batch[1]
    return None
