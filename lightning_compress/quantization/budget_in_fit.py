"""A budget shared out in a fit: sensitivities measured on a copy, on samples of the Trainer's own data."""

from __future__ import annotations

from functools import partial
from typing import Any

import lightning as L
from torch import nn

from lightning_compress.quantization.bit_allocation import Allocation, allocate_bits
from lightning_compress.quantization.bit_budget import BitBudget
from lightning_compress.quantization.sensitivity import sensitivity
from lightning_compress.quantization.settings import Settings
from lightning_compress.quantization.transparent import make_plain_
from lightning_compress.random_states import isolated_random_states
from lightning_compress.surgery import private_copy
from lightning_compress.surgery.tracing import capture
from lightning_compress.training.private import rehearse_training_step, spread_train_batches


def allocate_in_fit(trainer: L.Trainer, module: L.LightningModule, budget: BitBudget, settings: Settings) -> Allocation:
    """The best bits for each layer now; module, data and random states stay as they are.

    Args:
        trainer: whose training data are looked at.
        module: the network.
        budget: what all weights may come to.
        settings: whose targets are meant.

    Raises:
        CompressionError: a budget below what the fewest bits take.
    """
    duplicate = private_copy(module)
    make_plain_(duplicate)
    with isolated_random_states():
        batches = spread_train_batches(trainer, module, budget.samples)
        calls = [capture(duplicate, partial(_step, trainer, batch)) for batch in batches]
    found = sensitivity(
        duplicate,
        calls,
        budget.bits,
        forward=lambda root, call: call.run(root),
        targets=settings.targets,
        exclude=settings.exclude,
    )
    return allocate_bits(found, mean_bits=budget.mean_bits, size=budget.size)


def _step(trainer: L.Trainer, batch: Any, module: nn.Module) -> Any:
    return rehearse_training_step(module, trainer, batch)
