"""Where the logits lie in what a network returns."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lightning_compress.errors import CompressionError
from lightning_compress.training.batches import labels_in

__all__ = ["labels_in", "logits_in", "loss_in"]


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


def loss_in(output: object) -> Tensor | None:
    """The loss in what a ``training_step`` returns; None where the batch is skipped or optimization is manual.

    Raises:
        CompressionError: it is not one number.

    >>> import torch
    >>> loss_in({"loss": torch.tensor(2.0), "labels": None}).item()
    2.0
    """
    loss = output.get("loss") if isinstance(output, Mapping) else output
    if not isinstance(loss, Tensor):
        return None
    if loss.numel() != 1:
        raise CompressionError(
            f"training_step returns a loss of shape {tuple(loss.shape)}, which is not one number. Return its mean: "
            "loss.mean()."
        )
    return loss
