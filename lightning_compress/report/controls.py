"""The controls without which nobody knows whether a teacher helped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_compress.distillation import Distillation

Build = Callable[[], Distillation]


def distillation_arms(
    teachers: Any, classes: int, *, smoothing: float = 0.1, **options: Any
) -> dict[str, Build | None]:
    """Four ways to train one student, all by the same callback, none with an edit of its module.

    Args:
        teachers: as in :class:`~lightning_compress.distillation.Distillation`.
        classes: number of classes.
        smoothing: of the labels: the share that goes to the uniform distribution.
        options: further arguments of the distillation.

    Returns:
        ``no teacher`` (None), ``label smoothing`` (a teacher that knows nothing), ``pseudo-labels`` (the teachers' hard
        answers in the soft ones' place), ``distillation``.

    >>> list(distillation_arms(torch.nn.Linear(4, 3), 3))
    ['no teacher', 'label smoothing', 'pseudo-labels', 'distillation']
    """

    def ignorant(inputs: Tensor, *_: Any, **__: Any) -> Tensor:
        return torch.zeros(len(inputs), classes, device=inputs.device)

    hard = {**options, "pool": "vote", "temperature": 1.0, "loss": "kd"}
    return {
        "no teacher": None,
        "label smoothing": lambda: Distillation(ignorant, alpha=smoothing, temperature=1.0, fidelity=False),
        "pseudo-labels": lambda: Distillation(teachers, **hard),
        "distillation": lambda: Distillation(teachers, **options),
    }
