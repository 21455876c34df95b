"""The validation batches of a Trainer, for thresholds that all of its processes agree on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
from torch import Tensor

from lightning_compress.errors import CompressionError

Pairs = list[tuple[Tensor, Tensor]]


def validation_batches(trainer: L.Trainer, labels: Callable[[Any], Tensor | None], owner: str) -> Pairs:
    """Inputs and labels of the first validation loader, those of all processes.

    Raises:
        CompressionError: there is no validation data.
    """
    loaders = trainer.val_dataloaders
    if not loaders:
        raise CompressionError(f"{owner}(calibrate=...) needs validation data: give a val_dataloader.")
    loader = loaders[0] if isinstance(loaders, list | tuple) else loaders
    convert = trainer.precision_plugin.convert_input
    batches = (trainer.strategy.batch_to_device(convert(batch)) for batch in loader)
    pairs = [(batch[0], found) for batch in batches if (found := labels(batch)) is not None]
    return _gathered(trainer, pairs) if trainer.world_size > 1 else pairs


def _gathered(trainer: L.Trainer, pairs: Pairs) -> Pairs:
    gathered: Pairs = []
    for inputs, labels in pairs:
        stacked = trainer.strategy.all_gather(inputs), trainer.strategy.all_gather(labels)
        gathered.append((stacked[0].flatten(0, 1), stacked[1].flatten()))
    return gathered
