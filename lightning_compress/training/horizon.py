"""How long a fit is, for what has to be spread over it."""

from __future__ import annotations

import warnings

import lightning as L

from lightning_compress.errors import CompressionError


def length_of_fit(trainer: L.Trainer, who: str) -> float:
    """Length of the fit in epochs, from ``max_epochs`` and ``max_steps``.

    Where the data are a stream without a length, ``max_steps`` are one epoch.

    Raises:
        CompressionError: the fit has no end.
    """
    epochs = float("inf") if trainer.max_epochs in (None, -1) else float(trainer.max_epochs or 0)
    if trainer.max_steps != -1:
        steps_per_epoch = max(1, trainer.num_training_batches / trainer.accumulate_grad_batches)
        stream = trainer.num_training_batches == float("inf")
        epochs = 1.0 if stream else min(epochs, trainer.max_steps / steps_per_epoch)
    if epochs == float("inf"):
        raise CompressionError(f"{who} has no end to schedule towards: give the Trainer max_epochs or max_steps.")
    return epochs


def keep_horizon(trainer: L.Trainer, who: str, kept: float | None) -> float:
    """The length that schedules go by: of the first fit, also when a resumed one is to last longer or shorter.

    Args:
        trainer: of the present fit.
        who: whose schedule it is, for messages.
        kept: the length that was taken at the first start; None at the first.

    Raises:
        CompressionError: the fit has no end.
    """
    horizon = length_of_fit(trainer, who)
    if kept is not None and kept != horizon:
        warnings.warn(
            f"{who}: the schedule was made for {kept:g} epochs and keeps to them, though this fit lasts {horizon:g}.",
            stacklevel=2,
        )
    return horizon if kept is None else kept
