"""A cache opened, or built first: by the fit that needs it, process 0 for all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_compress.distillation.bank import TeacherBank
from lightning_compress.distillation.cache import TeacherCache, describe, first_tensor, write_cache
from lightning_compress.distillation.indexed import AllRows, Indexed
from lightning_compress.distillation.rehearsal import calls_in
from lightning_compress.errors import CompressionError
from lightning_compress.random_states import isolated_random_states
from lightning_compress.training import private


def open_cache(
    folder: str | Path,
    bank: TeacherBank,
    trainer: L.Trainer,
    module: L.LightningModule,
    *,
    student: str,
    top_k: int | None,
) -> TeacherCache:
    """The cache of the fit's training set in ``folder``, built if there is none.

    Raises:
        CompressionError: a training set without sample numbers, or a cache that is not of these teachers and samples.
    """
    loader = _loader(trainer)
    indexed: Indexed = loader.dataset  # type: ignore[assignment]
    expected = describe(bank.fingerprint, indexed.augmentation, indexed.rows, top_k)
    if not Path(folder).exists() and trainer.is_global_zero:
        with isolated_random_states(), torch.no_grad():
            write_cache(folder, expected, _outputs(loader, bank, trainer, module, student))
    trainer.strategy.barrier()
    return TeacherCache(folder, expected)


def _loader(trainer: L.Trainer) -> DataLoader[object]:
    loaders = private.train_loaders(trainer)
    if len(loaders) != 1 or not isinstance(getattr(loaders[0], "dataset", None), Indexed):
        raise CompressionError(
            "A cache finds samples by their number: use one training loader over "
            "lightning_compress.distillation.Indexed(dataset)."
        )
    loader: DataLoader[object] = loaders[0]
    return loader


def _outputs(
    loader: DataLoader[object], bank: TeacherBank, trainer: L.Trainer, module: L.LightningModule, student: str
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """For every view of every sample: what the student gets in the user's own step, and the members' logits."""
    calls_of = calls_in(trainer, module, student, "training_step")
    rows = AllRows(loader.dataset)  # type: ignore[arg-type]
    batches = DataLoader(rows, loader.batch_size or 1, num_workers=loader.num_workers, collate_fn=loader.collate_fn)
    for batch, numbers in batches:
        batch = trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch))
        calls = [call for call in calls_of(batch) if call.trains]
        if len(calls) != 1:
            raise CompressionError(
                f"The training step calls the student {len(calls)} times a batch; a cache keeps one output for each "
                "sample. Leave the cache out, or put calls that only look into torch.no_grad()."
            )
        yield numbers, first_tensor(calls[0].inputs), bank.ask_all(calls[0].args, calls[0].kwargs)
