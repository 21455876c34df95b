"""Which of the student's classes a teacher's outputs mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Integral
from typing import Any

from lightning_compress.errors import CompressionError, did_you_mean


def class_map(classes: Iterable[int] | Mapping[Any, int] | None, source: Any) -> list[int] | None:
    """The student's class for each of the teacher's outputs, -1 where it has none.

    Args:
        classes: as in :class:`~lightning_compress.distillation.Teacher`.
        source: the teacher; a model of scikit-learn says in ``classes_`` what its outputs mean.

    Raises:
        CompressionError: something else than class numbers, one number twice, or none at all; names of classes that
            are no numbers, without a mapping that says which they are.

    >>> class_map([0, 2, -1], None)
    [0, 2, -1]
    """
    own = getattr(source, "classes_", None)
    own = None if own is None else list(own)
    if isinstance(classes, Mapping):
        classes = _translated(classes, own)
    elif classes is None:
        if own is None:
            return None
        classes = _numbers(own, type(source).__name__)
    labels = list(classes.tolist() if hasattr(classes, "tolist") else classes)
    for label in labels:
        if isinstance(label, bool) or not isinstance(label, Integral) or label < -1:
            raise CompressionError(
                f"Teacher(classes={labels}): {label!r} is no class. They are whole numbers from 0, and -1 for an "
                "output that the student does not have."
            )
    known = [int(label) for label in labels if label >= 0]
    if not known:
        raise CompressionError(f"Teacher(classes={labels}): the student has none of these, so it could learn nothing.")
    if len(set(known)) < len(known):
        raise CompressionError(f"Teacher(classes={labels}): two outputs mean the same class.")
    return [int(label) for label in labels]


def _translated(classes: Mapping[Any, int], own: list[Any] | None) -> list[int]:
    if own is None:
        raise CompressionError("Teacher(classes={...}): only a model with classes_ has names; pass a list of numbers.")
    for name in classes:
        if name not in own:
            hint = did_you_mean(str(name), [str(one) for one in own])
            raise CompressionError(f"Teacher(classes={{...}}): the model has no class {name!r}. {hint}")
    return [classes.get(name, -1) for name in own]


def _numbers(own: list[Any], kind: str) -> list[int]:
    try:
        numbers = [-1 if isinstance(name, str) or not float(name).is_integer() else int(name) for name in own]
    except (TypeError, ValueError):
        numbers = [-1]
    if min(numbers) < 0:
        named = ", ".join(map(str, own[:4]))
        raise CompressionError(
            f"The outputs of this {kind} mean {named}{', ...' if len(own) > 4 else ''}, which are no class numbers. "
            f"Say which of the student's classes they are: Teacher(model, classes={{{own[0]!s:.20}: 0, ...}})."
        )
    return numbers
