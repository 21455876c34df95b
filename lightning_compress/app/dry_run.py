"""What a recipe would cut, without training: its stages rehearsed with every weight held still."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, open_dict
from rich.console import Console
from rich.text import Text

from lightning_compress.app.progress import StageDisplay
from lightning_compress.app.quiet import quiet
from lightning_compress.app.run_folder import RunFolder, StageFolder
from lightning_compress.app.stages import Stage, check_values, load_network, module_config, read_stages, run_stage
from lightning_compress.artifact import save_compressed
from lightning_compress.errors import CompressionError
from lightning_compress.plan import explain
from lightning_compress.report import Network
from lightning_compress.report.stage_table import stage_table

STILL = "_hold_still"
ENOUGH_STEPS = 60
"""Steps in which a stage can make its cuts, one at a time."""


class HoldStill(Callback):
    """Sets every learning rate to zero: optimizers step, and nothing is learned."""

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Anew for each step, since schedulers set them again."""
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = torch.zeros_like(group["lr"]) if isinstance(group["lr"], torch.Tensor) else 0.0


def dry_run(config: DictConfig, folder: Path, console: Console) -> None:
    """Print what each stage would leave: layers, parameters, MACs, bytes, the file; and the Plan.

    Each stage's callbacks do what they will do, on time, with a batch or a few an epoch; no cut has to recover. Weights
    are those that an earlier run of the same command has trained, as far as it has come, and fresh ones otherwise: of
    fresh ones the totals are right, and how they spread over the layers may differ. Nothing of the run is touched.

    Args:
        config: of the run.
        folder: of the run.
        console: to print on.

    Raises:
        CompressionError: something asked for cannot be done.
    """
    stages = read_stages(config)
    check_values(config)
    run = RunFolder(folder)
    shown = console if console.is_terminal else Console(quiet=True)
    with quiet(), TemporaryDirectory() as place, StageDisplay(shown, max(len(s.name) for s in stages)) as display:
        networks: list[Network] = []
        start: Path | None = None
        trained = ""
        left_out: list[str] = []
        for stage in stages:
            line = display.begin(stage.name, stage.epochs)
            rehearsal = run.stage(stage.name)
            if rehearsal.result.exists():
                trained, changed, quick = stage.name, config, stage
            else:
                rehearsal = StageFolder(Path(place) / stage.name)
                changed, quick, unknown = _rehearsed(config, stage, trained=bool(trained))
                left_out += unknown
            try:
                networks.append(run_stage(quick, changed, rehearsal, start=start, loggers=(), line=line))
            except CompressionError as error:
                if trained:
                    raise
                said = (
                    "The weights are fresh ones; trained ones may allow it: dry_run=true asks those once there are any."
                )
                raise CompressionError(f"Stage {stage.name!r}: {error} {said}") from error
            start = rehearsal.final
            line.finish("")
        assert start is not None
        plan = explain(start).partition("\n\n")[0]
        size = _size(config, stages[-1], start, Path(place)) if config.file is not None and trained else None
    with suppress(OSError):  # Hydra has made it; what is not empty stays
        folder.rmdir()
    console.print(stage_table(networks, size))
    for text in ("", plan, "", _length(config, stages), *_notes(trained, left_out, file=config.file)):
        console.print(Text(text), soft_wrap=True)


def _length(config: DictConfig, stages: Sequence[Stage]) -> str:
    epochs = " + ".join(f"{stage.epochs} ({stage.name})" for stage in stages)
    batches = _batches(config)
    return f"Training takes {epochs} epochs of {batches} batches: {sum(s.epochs for s in stages) * batches:,} steps."


def _notes(trained: str, left_out: Sequence[str], *, file: str | None) -> Iterator[str]:
    whose = f"those that {trained!r} left" if trained else "fresh: how cuts spread over the layers may change"
    yield f"Nothing was trained. Weights are {whose}. No cut had to recover; some may be taken back."
    if left_out:
        yield f"What {', '.join(left_out)} leaves depends on trained weights and is not shown."
    if file is not None and not trained:
        yield f"So does the size of {file}. Once the first stage is trained, dry_run=true tells it."


def _rehearsed(config: DictConfig, stage: Stage, *, trained: bool) -> tuple[DictConfig, Stage, list[str]]:
    """A batch or a few an epoch, no gate, no learning; and what fresh weights say nothing about.

    Teachers cut nothing, and their file may not be there yet. A stage that compresses nothing is over in an epoch.
    """
    changed = config.copy()
    with open_dict(changed):
        changed.trainer.update(limit_val_batches=1, limit_test_batches=1)
        changed.trainer.limit_train_batches = ceil(ENOUGH_STEPS / stage.epochs)
        changed.callbacks[STILL] = {"_target_": f"{HoldStill.__module__}.{HoldStill.__name__}"}
        for name in stage.callbacks:
            if "recover" in changed.callbacks[name]:
                changed.callbacks[name].recover = None
    taking = [name for name in stage.callbacks if "teachers" not in changed.callbacks[name]]
    unknown = [name for name in taking if not trained and changed.callbacks[name].get("objective") == "rate"]
    known = [name for name in taking if name not in unknown]
    return changed, replace(stage, callbacks=[*known, STILL], epochs=stage.epochs if known else 1), unknown


def _size(config: DictConfig, stage: Stage, final: Path, place: Path) -> int:
    """Bytes of the file that the rehearsed network would make."""
    module: L.LightningModule = instantiate(module_config(config, stage))
    load_network(module, final)
    return save_compressed(module, place / "rehearsed.lcz").bytes


def _batches(config: DictConfig) -> int:
    data: L.LightningDataModule = instantiate(config.data)
    data.prepare_data()
    data.setup("fit")
    return len(data.train_dataloader())
