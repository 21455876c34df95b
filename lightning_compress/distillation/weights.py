"""Weights of an ensemble's members by what they know of the validation data."""

from __future__ import annotations

import lightning as L
import torch
from torch import Tensor

from lightning_compress.distillation.bank import TeacherBank
from lightning_compress.distillation.ensemble import fit_weights
from lightning_compress.distillation.outputs import labels_in
from lightning_compress.errors import CompressionError


def weights_by_validation(bank: TeacherBank, trainer: L.Trainer) -> Tensor:
    """Mixture weights of greatest likelihood on the running fit's validation data, (members,).

    Raises:
        CompressionError: no validation data, or none with labels.
    """
    loaders = trainer.val_dataloaders
    if not loaders:
        raise CompressionError('weights="validation" needs validation data: give the fit a val_dataloader.')
    logits, labels = [], []
    for batch in loaders[0] if isinstance(loaders, list | tuple) else loaders:
        batch = trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch))
        found = labels_in(batch)
        if found is None or not isinstance(batch, tuple | list):
            raise CompressionError('weights="validation" needs validation batches (inputs, labels).')
        logits.append(bank.ask((batch[0],), {}).cpu())
        labels.append(found.cpu())
    return fit_weights(torch.cat(logits, dim=1), torch.cat(labels))
