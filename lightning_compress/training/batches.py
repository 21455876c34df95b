"""Where the labels lie in a user's batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

LABEL_KEYS = ("labels", "label", "targets", "target", "y", "classes")


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
