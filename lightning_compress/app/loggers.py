"""Loggers of a run: they outlive its stages, and their failures never stop a fit."""

from __future__ import annotations

import secrets
import sys
import warnings
from argparse import Namespace
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeVar

from hydra.utils import instantiate
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.loggers.logger import DummyLogger
from omegaconf import DictConfig

from lightning_compress.report.collect import collect_environment

T = TypeVar("T")


class GuardedLogger(Logger):
    """Passes everything on to another logger until that one raises; then warns once and is silent.

    Args:
        build: makes the other logger, at the first use; it may raise too.
        what: its name in the warning.

    >>> logger = GuardedLogger(lambda: CSVLogger("outputs"), "CSVLogger")
    >>> logger.name
    'lightning_logs'
    """

    def __init__(self, build: Callable[[], Logger], what: str) -> None:
        super().__init__()
        self._build, self._what = build, what
        self._inner: Logger | None = None
        self._steps, self._epochs = 0, 0
        self.failed = False

    def begin_stage(self, steps: int, epochs: int) -> None:
        """Count on from what earlier stages took: steps and epochs of a run never go back."""
        self._steps, self._epochs = steps, epochs

    def attempt(self, action: Callable[[Any], T]) -> T | None:
        """The action's result on the other logger; None once it has failed."""
        if self.failed:
            return None
        try:
            if self._inner is None:
                self._inner = self._build()
            return action(self._inner)
        except Exception as error:
            self.failed = True
            reason = str(error).strip() or type(error).__name__
            warnings.warn(f"{self._what} failed and is left out from here on, the run goes on: {reason}", stacklevel=2)
            if isinstance(error, ConnectionError):
                _forget_wandb_service()
            return None

    @property
    def name(self) -> str | None:
        """Of the experiment."""
        return self.attempt(lambda inner: inner.name)

    @property
    def version(self) -> int | str | None:
        """Of the experiment."""
        return self.attempt(lambda inner: inner.version)

    @property
    def save_dir(self) -> str | None:
        """Where it writes."""
        return self.attempt(lambda inner: inner.save_dir)

    @property
    def log_dir(self) -> str | None:
        """Where it writes."""
        return self.attempt(lambda inner: inner.log_dir)

    @property
    def experiment(self) -> Any:
        """The other logger's own object; once that has failed, one that takes any call and does nothing."""
        experiment = self.attempt(lambda inner: inner.experiment)
        return DummyLogger().experiment if self.failed else experiment

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Pass on, counted from the start of the run."""
        if "epoch" in metrics:
            metrics = {**metrics, "epoch": metrics["epoch"] + self._epochs}
        self.attempt(lambda inner: inner.log_metrics(metrics, None if step is None else step + self._steps))

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Pass on."""
        self.attempt(lambda inner: inner.log_hyperparams(params, *args, **kwargs))

    def log_graph(self, model: Any, input_array: Any = None) -> None:
        """Pass on."""
        self.attempt(lambda inner: inner.log_graph(model, input_array))

    def save(self) -> None:
        """Pass on."""
        self.attempt(lambda inner: inner.save())

    def finalize(self, status: str) -> None:
        """Pass on."""
        self.attempt(lambda inner: inner.finalize(status))

    def after_save_checkpoint(self, checkpoint_callback: Checkpoint) -> None:
        """Pass on."""
        self.attempt(lambda inner: inner.after_save_checkpoint(checkpoint_callback))


def build_loggers(config: DictConfig, folder: Path, resolved: Mapping[str, Any]) -> list[GuardedLogger]:
    """The CSV log, which is always there, and the logger that ``config.logger`` asks for.

    Args:
        config: of the run.
        folder: of the run; all that is written lies in it.
        resolved: the configuration as primitives, to be logged.
    """
    csv = GuardedLogger(lambda: CSVLogger(folder, "csv", flush_logs_every_n_steps=1), "CSVLogger")
    kind = config.logger._target_.rpartition(".")[2]
    if kind == "CSVLogger":
        return [csv]
    chosen = GuardedLogger(lambda: instantiate(config.logger, **_options(kind, config, folder)), kind)
    chosen.log_hyperparams({**resolved, "environment": collect_environment()})
    return [csv, chosen]


def _forget_wandb_service() -> None:
    """A W&B service that has died is not spoken to at exit, which ends in a traceback; the next run starts another."""
    if "wandb" in sys.modules:
        with suppress(Exception):
            sys.modules["wandb"].teardown()


def _options(kind: str, config: DictConfig, folder: Path) -> dict[str, Any]:
    """What ties a logger to this run; a kind that is not known here is used as it is configured."""
    if kind == "TensorBoardLogger":
        return {"save_dir": str(folder), "name": "tensorboard", "version": "", "default_hp_metric": False}
    if kind != "WandbLogger":
        return {}
    import wandb

    (folder / "wandb").mkdir(parents=True, exist_ok=True)
    mode: Literal["offline", "online"] = "offline" if config.logger.get("offline") else "online"
    settings = wandb.Settings(silent=True, console="off", mode=mode)
    wandb.setup(settings)  # init looks at "silent" too late for its own first words
    name = f"{folder.parent.name}/{folder.name}"
    return {"save_dir": str(folder), "id": _run_id(folder), "name": name, "group": config.sweep, "settings": settings}


def _run_id(folder: Path) -> str:
    """The id of the W&B run in this folder; made once, so that a resumed run is the same run."""
    path = folder / "wandb" / "run_id"
    if not path.exists():
        path.write_text(secrets.token_hex(4))
    return path.read_text()
