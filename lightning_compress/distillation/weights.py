"""What the members of an ensemble know of the validation data."""

from __future__ import annotations

import lightning as L
import torch
from torch import Tensor

from lightning_compress.distillation.bank import POOLS, TeacherBank
from lightning_compress.distillation.ensemble import Worth, fit_weights, leave_one_out
from lightning_compress.distillation.outputs import labels_in
from lightning_compress.errors import CompressionError


def weights_by_validation(bank: TeacherBank, trainer: L.Trainer) -> Tensor:
    """Mixture weights of greatest likelihood on the running fit's validation data, (members,).

    Raises:
        CompressionError: no validation data, or none with labels.
    """
    answers = _answers(bank, trainer)
    if answers is None:
        raise CompressionError(
            'weights="validation" needs validation batches (inputs, labels): give the fit such a val_dataloader.'
        )
    return fit_weights(*answers)


def worth_by_validation(bank: TeacherBank, trainer: L.Trainer) -> list[Worth]:
    """The ensemble and the ensemble without each member, on the running fit's validation data; empty without labels.

    Where classes are missing altogether nothing can be said either.
    """
    answers = _answers(bank, trainer)
    if answers is None or answers[0].dim() != 3 or not answers[0].isfinite().any(dim=0).all():
        return []
    names = [f"{teacher.name} ({number})" for number, teacher in enumerate(bank.teachers)]
    fits_any_number = bank.pool.__module__.startswith(POOLS) and not bank.draws
    pool = bank.pool if fits_any_number else "mean_probabilities"  # a user's own may count on all members
    return leave_one_out(*answers, names, pool=pool, weights=bank.weights)


def _answers(bank: TeacherBank, trainer: L.Trainer) -> tuple[Tensor, Tensor] | None:
    """All members' logits (members, N, C) and the labels (N,), those of all processes."""
    loaders = trainer.val_dataloaders
    if not loaders:
        return None
    logits, labels = [], []
    for batch in loaders[0] if isinstance(loaders, list | tuple) else loaders:
        batch = trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch))
        found = labels_in(batch)
        if found is None or not isinstance(batch, tuple | list):
            return None
        logits.append(bank.ask_all((batch[0],), {}))
        labels.append(found)
    members, truth = torch.cat(logits, dim=1), torch.cat(labels)
    if trainer.world_size > 1:
        members = torch.cat(list(trainer.strategy.all_gather(members)), dim=1)
        truth = trainer.strategy.all_gather(truth).flatten()
    return members.cpu(), truth.cpu()
