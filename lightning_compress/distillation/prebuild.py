"""A cache built ahead of the fits that share it."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import lightning as L

from lightning_compress.distillation.cache import TeacherCache
from lightning_compress.distillation.callback import Distillation
from lightning_compress.errors import CompressionError
from lightning_compress.training import CompressionCallback


class _BuiltError(Exception):
    """The first step of the fit is not made."""


class _StopBeforeTheFirstStep(CompressionCallback):
    order = 99

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        raise _BuiltError


def build_cache(distillation: Distillation, module: L.LightningModule, data: Any, **trainer: Any) -> TeacherCache:
    """The cache that ``distillation`` names, built if it is not there; nothing is trained.

    A fit with ``Distillation(cache=...)`` builds its cache itself. Build it ahead where several runs at once would
    each build it.

    Args:
        distillation: as it will be in the fits; temperature, alpha, loss, pool and weights may be others there.
        module: a student, trained or not: it says what the teachers are asked.
        data: as for ``Trainer.fit``: a data module or a training loader, with numbered samples.
        trainer: further arguments of the Trainer, such as ``accelerator``.

    Raises:
        CompressionError: no ``cache=``, or what is there is of other teachers, samples or augmentations.
    """
    if distillation.cache is None:
        raise CompressionError('There is no cache to build: Distillation(teachers, cache="FOLDER").')
    options = {"max_epochs": 1, "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    runner = L.Trainer(
        callbacks=[distillation, _StopBeforeTheFirstStep()],
        enable_model_summary=False,
        **{**options, **trainer, "num_sanity_val_steps": 0},
    )
    is_loader = not isinstance(data, L.LightningDataModule)
    with suppress(_BuiltError):
        runner.fit(module, data if is_loader else None, datamodule=None if is_loader else data)
    built = distillation.engine.cache
    assert built is not None
    return built
