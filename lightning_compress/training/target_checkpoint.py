"""Checkpoints of epochs that are on target only."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_compress.training.session import Session


class TargetCheckpoint(ModelCheckpoint):
    """A ModelCheckpoint that waits until the network is what our callbacks were asked to make of it.

    The "best" epoch of a pruning run is otherwise the dense one. On target means that every callback has reached its
    target (or settled for a ceiling) and no cut waits for its recovery. Put a plain ModelCheckpoint(save_last=True)
    beside it for resuming.

    >>> best = TargetCheckpoint(monitor="val_acc", mode="max")
    """

    @property
    def state_key(self) -> str:
        """Its own, so that a plain ModelCheckpoint may stand beside it."""
        return super().state_key.replace("ModelCheckpoint", "TargetCheckpoint", 1)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time, and the network on target."""
        if _on_target(pl_module):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save if it is time, and the network on target."""
        if _on_target(pl_module):
            super().on_train_epoch_end(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save if it is time, and the network on target."""
        if _on_target(pl_module):
            super().on_validation_end(trainer, pl_module)


def _on_target(module: L.LightningModule) -> bool:
    session = Session.find(module)
    return session is None or session.on_target
