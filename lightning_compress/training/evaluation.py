"""Validation of a copy in mid-fit: a second Trainer on a deepcopy leaves the running one alone."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import lightning as L
from lightning.pytorch.loggers.logger import DummyLogger

from lightning_compress.errors import CompressionError
from lightning_compress.random_states import isolated_random_states
from lightning_compress.training import private


def evaluate_copy(trainer: L.Trainer, module: L.LightningModule) -> dict[str, float]:
    """Metrics of a validation of ``module`` as it is: the running Trainer's data, limits, epoch and precision.

    Raises:
        CompressionError: the Trainer has no validation data.
    """
    if not trainer.val_dataloaders:
        raise CompressionError("Recovery needs validation data: give the fit a val_dataloader and a validation_step.")
    index = trainer.strategy.root_device.index
    with isolated_random_states(), _quiet():
        validator = L.Trainer(
            accelerator=trainer.accelerator.__class__.__name__.removesuffix("Accelerator").lower(),
            devices=1 if index is None else [index],
            precision=trainer.precision,
            logger=DummyLogger() if trainer.loggers else False,
            max_epochs=trainer.max_epochs,
            limit_val_batches=trainer.limit_val_batches,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            inference_mode=False,
        )
        private.pretend_epoch(validator, trainer)
        rehearsed = copy.deepcopy(module)
        private.forget_metric_names(rehearsed)
        validator.validate(rehearsed, dataloaders=trainer.val_dataloaders, verbose=False)
    return {name: float(value) for name, value in validator.callback_metrics.items()}


@contextmanager
def _quiet() -> Iterator[None]:
    """No hardware summary in the middle of somebody's progress bar."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
