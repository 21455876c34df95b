"""Stages of a run, in order: each a fit of its own, begun from what the one before left, resumable at every epoch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback, Checkpoint
from omegaconf import DictConfig, OmegaConf

from lightning_compress.app.loggers import GuardedLogger
from lightning_compress.app.progress import StageLine
from lightning_compress.app.run_folder import StageFolder, write_text
from lightning_compress.errors import CompressionError, did_you_mean
from lightning_compress.plan import Journal, Plan, Record, read_checkpoint
from lightning_compress.report import Network, collect_network, quantized_bits
from lightning_compress.report.report import network_from_state
from lightning_compress.training import AtomicCheckpointIO, NaNGuard, Replay, TargetCheckpoint


@dataclass(frozen=True)
class Stage:
    """A fit.

    Attributes:
        name: of the stage and its folder.
        epochs: its length.
        callbacks: names of those of the recipe's callbacks that take part.
        module: values of the module's configuration that are others in this stage.
    """

    name: str
    epochs: int
    callbacks: Sequence[str] = ()
    module: Mapping[str, Any] | None = None


def read_stages(config: DictConfig) -> list[Stage]:
    """The stages that a configuration lists; one that is null is left out.

    Raises:
        CompressionError: no stage, no epochs, an unknown field, or a callback that the recipe does not have.
    """
    chosen = {str(name): stage for name, stage in (config.stages or {}).items() if stage is not None}
    if not chosen:
        raise CompressionError("The recipe has no stages. Choose another: recipe=iterative_pruning.")
    return [_read_stage(name, stage, config) for name, stage in chosen.items()]


def _read_stage(name: str, values: DictConfig, config: DictConfig) -> Stage:
    known = {field.name for field in fields(Stage)} - {"name"}
    for key in values:
        if key not in known:
            raise CompressionError(f"Stage {name!r} has the unknown field {key!r}. {did_you_mean(str(key), known)}")
    stage = Stage(name, **OmegaConf.to_container(values, resolve=True))  # type: ignore[arg-type]
    if not isinstance(stage.epochs, int) or stage.epochs < 1:
        raise CompressionError(f"stages.{name}.epochs={stage.epochs!r}: a stage takes at least one epoch.")
    for callback in stage.callbacks:
        if callback not in config.callbacks:
            raise CompressionError(
                f"Stage {name!r} names the callback {callback!r}. {did_you_mean(callback, map(str, config.callbacks))}"
            )
    return stage


def check_values(config: DictConfig) -> None:
    """Build once what the stages will build, so that a wrong value is refused before an epoch is spent.

    Raises:
        CompressionError: a value that a constructor refuses.
    """
    if not isinstance(config.seed, int):
        raise CompressionError(f"seed={config.seed!r}: a seed is a whole number.")
    data, _, _ = (instantiate(config[name]) for name in ("data", "module", "callbacks"))
    classes, asked = getattr(data, "num_classes", None), config.module.get("num_classes")
    if classes is not None and asked is not None and classes != asked:
        raise CompressionError(
            f"The data have {classes} classes and the network would have {asked}. Add module.num_classes={classes}."
        )
    for stage in read_stages(config):
        instantiate(module_config(config, stage))


def module_config(config: DictConfig, stage: Stage) -> DictConfig:
    """The module as a stage has it."""
    merged = OmegaConf.merge(config.module, stage.module or {})
    assert isinstance(merged, DictConfig)
    return merged


class StageCheckpoint(Checkpoint):
    """Writes ``last.ckpt`` after each epoch but the last, and ``final.ckpt`` when the fit has ended.

    The end of a fit may still change the network (a cut that did not recover is taken back), so the last epoch is run
    again after an interruption rather than resumed when it is over.
    """

    def __init__(self, folder: StageFolder) -> None:
        self._folder = folder

    @property
    def last_model_path(self) -> str:
        """What is left if the fit breaks off now."""
        return str(self._folder.last) if self._folder.last.exists() else ""

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save, to resume from."""
        if trainer.current_epoch + 1 < (trainer.max_epochs or 0):
            trainer.save_checkpoint(self._folder.last)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save what the stage leaves: weights that have been put on their grid by now."""
        trainer.save_checkpoint(self._folder.final, weights_only=True)


def run_stage(
    stage: Stage,
    config: DictConfig,
    folder: StageFolder,
    *,
    start: Path | None,
    loggers: Sequence[GuardedLogger],
    line: StageLine,
) -> Network:
    """Train a stage, or what is left of it, and measure the network that it leaves: that of its last epoch.

    Each stage builds module and data anew from the seed and loads the file before it: what an interrupted run and an
    uninterrupted one do is then the same.

    Args:
        stage: what to do.
        config: of the run.
        folder: where the stage's files are.
        start: checkpoint of the network to begin with; None begins with a fresh one.
        loggers: of the run.
        line: the stage's progress.
    """
    if folder.result.exists():
        return network_from_state(json.loads(folder.result.read_text()))
    L.seed_everything(config.seed, workers=True, verbose=False)
    data: L.LightningDataModule = instantiate(config.data)
    module: L.LightningModule = instantiate(module_config(config, stage))
    if folder.final.exists():
        load_network(module, folder.final)
    else:
        _fit(stage, config, folder, module, data, start=start, loggers=loggers, line=line)
    network = _measure(stage, config, module, data, quantized_bits(read_file(folder.final)))
    write_text(folder.result, json.dumps(asdict(network), indent=1))
    return network


def _fit(
    stage: Stage,
    config: DictConfig,
    folder: StageFolder,
    module: L.LightningModule,
    data: L.LightningDataModule,
    *,
    start: Path | None,
    loggers: Sequence[GuardedLogger],
    line: StageLine,
) -> None:
    callbacks: list[Callback] = [instantiate(config.callbacks[name]) for name in stage.callbacks]
    best = TargetCheckpoint(
        folder.path, "best_{epoch:03d}_{" + config.monitor + ":.4f}", config.monitor, mode=config.mode,
        auto_insert_metric_name=False, save_weights_only=True,
    )  # fmt: skip
    callbacks += [Replay(), NaNGuard(), best, StageCheckpoint(folder), line]
    if start is not None:
        load_network(module, start)
    resumed = folder.last.exists()
    if not resumed:
        text = f"stage {stage.name!r}: {stage.epochs} epochs"
        Record.of(module).journal.add("start", text, epoch=0.0, step=0, stage=stage.name, epochs=stage.epochs)
    trainer = _trainer(config, max_epochs=stage.epochs, callbacks=callbacks, logger=list(loggers))
    try:
        trainer.fit(module, datamodule=data, ckpt_path=folder.last if resumed else None)
    except SystemExit:  # how Lightning ends a fit that was interrupted from the keyboard
        raise KeyboardInterrupt from None


def _trainer(config: DictConfig, **options: Any) -> L.Trainer:
    build = instantiate(config.trainer, _partial_=True)
    trainer: L.Trainer = build(
        plugins=[AtomicCheckpointIO()], enable_progress_bar=False, enable_model_summary=False, **options
    )
    return trainer


def evaluate(config: DictConfig, module: L.LightningModule, data: L.LightningDataModule) -> dict[str, float]:
    """What validation, and test where there is one, say of ``module``."""
    judge = _trainer(config, logger=False, enable_checkpointing=False)
    metrics: dict[str, float] = dict(judge.validate(module, datamodule=data, verbose=False)[0])
    if data.__class__.test_dataloader is not L.LightningDataModule.test_dataloader:
        metrics.update(judge.test(module, datamodule=data, verbose=False)[0])
    return metrics


def _measure(
    stage: Stage, config: DictConfig, module: L.LightningModule, data: L.LightningDataModule, bits: Mapping[str, int]
) -> Network:
    metrics = evaluate(config, module, data)
    sample = next(iter(data.val_dataloader()))[0][:1]
    module.eval()
    return collect_network(module, sample, stage=stage.name, epochs=stage.epochs, metrics=metrics, bits=bits)


def load_network(module: L.LightningModule, path: Path) -> None:
    """Give ``module`` the shape, the weights and the Journal of a checkpoint."""
    checkpoint = read_file(path)
    plan, journal = read_checkpoint(checkpoint) or (Plan(), Journal())
    plan.apply_to(module)
    module.load_state_dict(checkpoint["state_dict"])
    Record.of(module).journal = journal


def build_network(config: DictConfig, stage: Stage, path: Path) -> L.LightningModule:
    """The module as ``stage`` has it, with the network of a checkpoint."""
    module: L.LightningModule = instantiate(module_config(config, stage))
    load_network(module, path)
    return module


def read_file(path: Path) -> dict[str, Any]:
    """A checkpoint's content."""
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return content
