"""The model file, written while the network trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L

from lightning_compress.artifact.entropy import CODERS, CoderName
from lightning_compress.artifact.model_file import save_compressed
from lightning_compress.artifact.summary import FileSummary
from lightning_compress.errors import CompressionError, did_you_mean
from lightning_compress.training import CompressionCallback
from lightning_compress.training.seen_weights import weights_as_seen

BEST, LAST = "best.lcz", "last.lcz"


class SaveCompressed(CompressionCallback):
    """Writes ``best.lcz`` and ``last.lcz`` of the epochs on target only: the best epoch is otherwise the dense one.

    On target means that every callback of this package has reached what it was asked for, or settled for less, and no
    cut waits for its recovery. Stands beside ModelCheckpoint, which is for resuming.

    Args:
        folder: where the files go.
        monitor: logged metric that says which epoch is best; None writes ``last.lcz`` alone.
        mode: "max" or "min".
        coder: see :func:`~lightning_compress.save_compressed`.
        name: distinguishes two of them in a Trainer.

    Attributes:
        best: value of the metric in ``best.lcz``; None before the first.
        summary: of the file written last.

    Raises:
        CompressionError: a mode or coder that does not exist, at once; a metric that nobody logs, at the first
            validation on target.

    >>> SaveCompressed("outputs", monitor="val_acc").best_path.name
    'best.lcz'
    """

    order = 90

    def __init__(
        self,
        folder: str | Path,
        *,
        monitor: str | None = None,
        mode: str = "max",
        coder: CoderName = "auto",
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        if mode not in ("max", "min"):
            raise CompressionError(f"No mode {mode!r}. {did_you_mean(str(mode), ['max', 'min'])}")
        if coder not in CODERS:
            raise CompressionError(f"No coder {coder!r}. {did_you_mean(str(coder), CODERS)}")
        self.folder = Path(folder)
        self.monitor = monitor
        self.best: float | None = None
        self.summary: FileSummary | None = None
        self._edits = 0
        self._sign = 1 if mode == "max" else -1
        self._coder: CoderName = coder

    @property
    def best_path(self) -> Path:
        """The file of the best epoch on target."""
        return self.folder / BEST

    @property
    def last_path(self) -> Path:
        """The file of the last epoch on target."""
        return self.folder / LAST

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the best file, if this is the best epoch on target so far."""
        super().on_validation_end(trainer, pl_module)
        if self.monitor is None or trainer.sanity_checking or trainer.state.fn != "fit" or not self.session.on_target:
            return
        if self.monitor not in trainer.callback_metrics:
            hint = did_you_mean(self.monitor, map(str, trainer.callback_metrics))
            raise CompressionError(f"{self.state_key}: nobody logs {self.monitor!r}. {hint}")
        value = self.session.from_first(lambda: float(trainer.callback_metrics[str(self.monitor)]))
        if self.best is None or self._sign * value > self._sign * self.best:
            self.best = value
            self._save(trainer, pl_module, self.best_path)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the last file, if the network is on target."""
        if self.session.on_target:
            self._save(trainer, pl_module, self.last_path)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the last file again where the end of the fit has edited the network, by hanging exits on it."""
        if self.session.on_target and len(self.session.plan) != self._edits:
            self._save(trainer, pl_module, self.last_path)

    def state_dict(self) -> dict[str, Any]:
        """The best value so far."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the best value so far."""
        self.best = state_dict["best"]

    def _save(self, trainer: L.Trainer, module: L.LightningModule, path: Path) -> None:
        """The first process writes; the weights are the same everywhere."""
        self._edits = len(self.session.plan)
        if not trainer.is_global_zero:
            return
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        finite = {name: value for name, value in values.items() if abs(value) < float("inf")}
        with weights_as_seen(self.session):
            self.summary = save_compressed(
                module, path, coder=self._coder, metrics=finite, metadata={"epoch": trainer.current_epoch}
            )
