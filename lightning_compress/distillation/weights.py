"""What the members of an ensemble know of the validation data."""

from __future__ import annotations

import lightning as L
import torch
from torch import Tensor

from lightning_compress.distillation.bank import POOLS, TeacherBank
from lightning_compress.distillation.ensemble import Worth, fit_weights, leave_one_out
from lightning_compress.distillation.indexed import unwrap
from lightning_compress.distillation.outputs import labels_in
from lightning_compress.distillation.rehearsal import calls_in
from lightning_compress.errors import CompressionError
from lightning_compress.training import private


def weights_by_validation(bank: TeacherBank, trainer: L.Trainer, module: L.LightningModule, student: str) -> Tensor:
    """Mixture weights of greatest likelihood on the running fit's validation data, (members,).

    Raises:
        CompressionError: no validation data, or none with labels of classes.
    """
    answers = _answers(bank, trainer, module, student)
    if answers is None:
        raise CompressionError(
            'weights="validation" needs validation batches (inputs, labels) and outputs (N, classes): give the fit a '
            "val_dataloader of such, and the module a validation_step that calls the student once; or pass numbers."
        )
    return fit_weights(*answers)


def worth_by_validation(bank: TeacherBank, trainer: L.Trainer, module: L.LightningModule, student: str) -> list[Worth]:
    """The ensemble and the ensemble without each member, on the running fit's validation data; empty without labels.

    Where classes are missing altogether nothing can be said either.
    """
    answers = _answers(bank, trainer, module, student)
    if answers is None or not answers[0].isfinite().any(dim=0).all():
        return []
    names = [f"{teacher.name} ({number})" for number, teacher in enumerate(bank.teachers)]
    fits_any_number = bank.pool.__module__.startswith(POOLS) and not bank.draws
    pool = bank.pool if fits_any_number else "mean_probabilities"  # a user's own may count on all members
    return leave_one_out(*answers, names, pool=pool, weights=bank.weights)


def _answers(
    bank: TeacherBank, trainer: L.Trainer, module: L.LightningModule, student: str
) -> tuple[Tensor, Tensor] | None:
    """All members' logits (members, N, C) for what the user's own step gives the student, and the labels (N,), those of
    all processes; None where there are none.
    """
    calls_of = calls_in(trainer, module, student, "validation_step")
    logits, labels = [], []
    for batch in private.validation_batches(trainer, module):
        sample, _ = unwrap(batch)
        found, calls = labels_in(sample), calls_of(sample)
        if found is None or found.is_floating_point() or found.dim() != 1 or len(calls) != 1:
            return None
        members = bank.ask_all(calls[0].args, calls[0].kwargs)
        if members.shape[1:-1] != found.shape:
            return None
        logits.append(members)
        labels.append(found)
    if not labels:
        return None
    members, truth = torch.cat(logits, dim=1), torch.cat(labels)
    if trainer.world_size > 1:
        members = torch.cat(list(trainer.strategy.all_gather(members)), dim=1)
        truth = trainer.strategy.all_gather(truth).flatten()
    valid = (truth >= 0) & (truth < members.shape[-1])
    return members[:, valid].cpu(), truth[valid].cpu()
