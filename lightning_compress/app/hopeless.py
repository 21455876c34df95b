"""Ends a trial of a search that can no longer come to anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

import lightning as L
from lightning.pytorch.callbacks import Callback

from lightning_compress.errors import CompressionError
from lightning_compress.plan import Record

if TYPE_CHECKING:
    from optuna import Trial


STRIDE = 1000
"""More validations than a stage has: steps that Optuna sees rise from stage to stage, alike in every trial."""


class HopelessError(CompressionError):
    """This trial is not worth its time."""


class StopHopeless(Callback):
    """Breaks a stage off whose metric has stayed too low; and asks Optuna's pruner, where that can be asked.

    Optuna prunes trials of one objective only. With several, a trial is hopeless when ``patience`` validations in a
    row are worse by more than ``max_drop`` than the first stage's last one: no size is worth that.

    Args:
        monitor: a metric of validation.
        mode: "max" or "min" of it is better.
        max_drop: what may be lost while a stage goes on, in units of ``monitor``.
        patience: validations.

    Raises:
        CompressionError: a value out of range.
    """

    trial: Trial | None = None
    """Of the process, if the search has one objective."""

    def __init__(self, monitor: str = "val_acc", *, mode: str = "max", max_drop: float, patience: int = 5) -> None:
        if max_drop < 0 or patience < 1 or mode not in ("max", "min"):
            raise CompressionError(
                f"StopHopeless(max_drop={max_drop}, patience={patience}, mode={mode!r}): at least 0, at least 1, "
                '"max" or "min".'
            )
        self._monitor, self._mode, self._max_drop, self._patience = monitor, mode, max_drop, patience
        self._bad = self._seen = 0

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look at the metric.

        Raises:
            HopelessError: the trial ends here.
        """
        if trainer.state.fn != "fit" or self._monitor not in trainer.callback_metrics:
            return
        value = float(trainer.callback_metrics[self._monitor])
        self._seen += 1
        stages = sum(entry.kind == "start" for entry in Record.of(pl_module).journal)
        self._ask_optuna(value, stages * STRIDE + self._seen)
        reference = self._reference(pl_module)
        if reference is None:
            return
        worse = reference - value if self._mode == "max" else value - reference
        self._bad = self._bad + 1 if worse > self._max_drop else 0
        if self._bad >= self._patience:
            raise HopelessError(f"{self._monitor} {value:.4g}, where it was {reference:.4g} before compression.")

    def _reference(self, module: L.LightningModule) -> float | None:
        """What validation said at the end of the first stage; None while that goes on."""
        last: float | None = None
        stages = 0
        for entry in Record.of(module).journal:
            stages += entry.kind == "start"
            if stages == 2:
                return last
            if self._monitor in entry.data:
                last = float(entry.data[self._monitor] or 0.0)
        return None

    def _ask_optuna(self, value: float, step: int) -> None:
        if self.trial is not None:
            self.trial.report(value, step)
            if self.trial.should_prune():
                raise HopelessError(
                    f"Optuna's pruner: {self._monitor} {value:.4g} is worse than others at step {step}."
                )
