"""Whether outputs have the shape that a loss reads: a softmax over the wrong dimension is no error, only wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from lightning_compress.distillation.precision import name_of, outputs_of
from lightning_compress.errors import CompressionError

LAYOUTS = {
    "classes": "one distribution over classes for each sample, (N, classes)",
    "tokens": "a distribution over classes at each place of a sequence, (N, length, classes)",
    "pixels": "a distribution over classes at each pixel, (N, classes, height, width)",
}
"""What a loss reads -> the outputs that it wants; other losses take any."""
OF_CLASSES = (*LAYOUTS, "any")
"""Outputs that may be distributions over classes."""


def width(shape: Sequence[int], outputs: str) -> int:
    """How many classes, labels or values an output of this shape has.

    >>> width((8, 21, 32, 32), "pixels"), width((8, 5), "values"), width((8,), "values")
    (21, 5, 1)
    """
    return shape[1 if outputs == "pixels" else -1] if len(shape) > 1 else 1


def refuse_shape(loss: Callable[..., Tensor], shape: Sequence[int]) -> None:
    """Raise if ``loss`` would take its softmax over something else than classes.

    Raises:
        CompressionError: with the losses that are made for outputs like these.
    """
    outputs, shape = outputs_of(loss), tuple(shape)
    fits = {"classes": len(shape) == 2, "tokens": len(shape) > 2, "pixels": len(shape) > 2}
    if outputs not in fits or (fits[outputs] and width(shape, outputs) > 1):
        return
    raise CompressionError(
        f"The loss {name_of(loss)} reads {LAYOUTS[outputs]}, and the student returns {shape}. {_way_out(shape)}"
    )


def _way_out(shape: tuple[int, ...]) -> str:
    if width(shape, "classes") == 1 or (len(shape) > 3 and width(shape, "pixels") == 1):
        return 'Use loss="sigmoid_kd" where each number says yes or no, loss="regression" where it is a value.'
    if len(shape) == 2:
        return 'Use loss="kd".'
    return (
        'Use loss="per_pixel" where dimension 1 holds the classes, loss="per_token" where the last one does, '
        'loss="regression" for values.'
    )
