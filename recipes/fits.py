"""A fit without noise: what recipes repeat hundreds of times."""

import logging
import warnings
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

torch.set_num_threads(1)


def quiet() -> None:
    """Lightning says nothing."""
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")


def fit(module: L.LightningModule, batches: Any, epochs: int, *callbacks: Callback) -> None:
    """So many epochs on the processor, in training mode: no validation, no files, no display."""
    quiet()
    module.train()
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=list(callbacks),
    )
    trainer.fit(module, train_dataloaders=batches)
