"""A correction for classes that a student has never seen itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_compress.errors import CompressionError


def fit_class_bias(logits: Tensor, labels: Tensor, classes: Sequence[int], *, values: Tensor | None = None) -> Tensor:
    """What to add to the logits of ``classes`` so that held-out samples are classified best.

    A student trained without a class learns from soft targets what it looks like, but not how frequent it is (Hinton
    et al. 2015, section 3: digit 3). One bias for each of ``classes`` is searched in turn; among equals the middle one
    is taken.

    Args:
        logits: (N, C) of held-out samples, which must not be those that the result is scored on.
        labels: (N,).
        classes: whose biases are fitted.
        values: candidates; None searches -10 to 30 in steps of 0.1.

    Returns:
        (C,), zero for all other classes.

    Raises:
        CompressionError: a class that the logits do not have.

    >>> fit_class_bias(torch.tensor([[1.0, 0.0], [3.0, 0.0]]), torch.tensor([1, 0]), [1])[1].item()
    2.0
    """
    for label in classes:
        if not 0 <= label < logits.shape[-1]:
            raise CompressionError(f"fit_class_bias: there is no class {label} among {logits.shape[-1]}.")
    values = torch.arange(-100, 301) / 10 if values is None else values
    bias = torch.zeros(logits.shape[-1])
    for label in classes:
        right = []
        for value in values:
            bias[label] = value
            right.append(int(((logits + bias).argmax(-1) == labels).sum()))
        best = [value for value, count in zip(values.tolist(), right, strict=True) if count == max(right)]
        bias[label] = round(best[(len(best) - 1) // 2], 6)
    return bias
