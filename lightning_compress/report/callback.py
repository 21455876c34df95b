"""The report of a fit, in any Trainer."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor

from lightning_compress.artifact.callback import SaveCompressed
from lightning_compress.distillation import Distillation
from lightning_compress.errors import CompressionError, did_you_mean
from lightning_compress.pruning import WeightPruning, sensitivity
from lightning_compress.random_states import isolated_random_states
from lightning_compress.report.answers import compare_answers, predict
from lightning_compress.report.fit import check_file_name, describe_fit, fit_network, fit_report, write_file
from lightning_compress.report.page import draw_figures, render_page
from lightning_compress.report.publish import ModelFiles, send_report
from lightning_compress.report.report import (
    FINISHED,
    Answers,
    Network,
    Report,
    curves_from_state,
    network_from_state,
    read_rival,
)
from lightning_compress.training import CompressionCallback, GradualCallback, Replay, evaluate_copy, private
from lightning_compress.training.atomic_checkpoint import write_atomically
from lightning_compress.training.seen_weights import weights_as_seen

CUTS_ARE_TOLD = (GradualCallback, Distillation, Replay, SaveCompressed)
"""Callbacks that leave the network as it is until the Journal has a cut."""

PROBE_BATCHES = 2


class CompressionReport(CompressionCallback):
    """Writes ``report.html`` and ``report.json`` of a fit: the page that the command writes, in any Trainer.

    "Before" is the network of the last validation before the first cut; where a callback changes the network from the
    start (quantization, exits, factors), it is the network that the fit began with. "After" is what the fit leaves,
    validated again if it has changed since its last validation. A resumed fit tells of the whole of it; one that breaks
    off leaves a report that says so. What cannot be known here is listed under ``unknown``, not guessed. The first
    process writes. To a :class:`~lightning.pytorch.loggers.WandbLogger` of the Trainer go tables, figures and model as
    from the command; if that fails, a warning is all that comes of it.

    Args:
        folder: where the files go.
        monitor: logged metric that the report follows; None: that of a Recovery in this Trainer, else the first name
            that is no loss.
        mode: "max" or "min" of it is better.
        file: name of a compressed file of the network that is left, such as "model.lcz"; None writes none.
        rival: folder of the honest rival's report: a small dense network of equal bytes, trained from scratch.
        samples: validation samples on which answers before and after are compared; 0: none.
        sensitivity: measure what zeros in each weight tensor alone would cost the network before (WeightPruning's own
            measurement is shown anyway).
        name: distinguishes two of them in a Trainer.

    Attributes:
        report: what was written last; None before that and on the other processes.

    Raises:
        CompressionError: a mode that does not exist, a file name without ``.lcz``, no report at ``rival``: at once; a
            metric that nobody logs: at the first validation.

    >>> trainer = L.Trainer(callbacks=[CompressionReport("outputs")], logger=False, enable_checkpointing=False)
    """

    order = 95

    def __init__(
        self,
        folder: str | Path,
        *,
        monitor: str | None = None,
        mode: str = "max",
        file: str | None = None,
        rival: str | Path | None = None,
        samples: int = 2000,
        sensitivity: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        if mode not in ("max", "min"):
            raise CompressionError(f"No mode {mode!r}. {did_you_mean(str(mode), ['max', 'min'])}")
        if isinstance(samples, bool) or not isinstance(samples, int) or samples < 0:
            raise CompressionError(f"samples={samples!r} is no number of samples. 0 compares no answers.")
        check_file_name(file)
        self.folder = Path(folder)
        self.monitor, self.mode = monitor, mode
        self.report: Report | None = None
        self._file, self._samples, self._measures = file, samples, sensitivity
        self._rival = None if rival is None else read_rival(rival)
        self.start_over()

    @property
    def page(self) -> Path:
        """The report to look at."""
        return self.folder / "report.html"

    def start_over(self) -> None:
        """A fit that begins knows nothing of another."""
        self._before: Network | None = None
        self._answers: tuple[Tensor, Tensor] | None = None
        self._curves: dict[str, tuple[tuple[float, float], ...]] = {}
        self._unknown: dict[str, None] = {}
        self._metrics: dict[str, float] = {}
        self._validated: tuple[int, ...] = ()
        self._first_entry = 0
        self._resumed = False

    # -- hooks --------------------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A second fit of this callback is a report of its own."""
        super().on_fit_start(trainer, pl_module)
        if not self._resumed:
            self.start_over()
            self._first_entry = len(self.session.journal)
        self._resumed = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look at the network that the fit begins with, unless it goes on from a checkpoint that knows it."""
        super().on_train_start(trainer, pl_module)
        if self._before is None:
            self._look_before(trainer, pl_module, self._evaluate(trainer, pl_module))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the figures; until the first cut, the network that they belong to is the one before."""
        super().on_validation_end(trainer, pl_module)
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self._metrics = private.validation_metrics(trainer)
        self._validated = self._moment(trainer)
        if self.monitor is not None and self.monitor not in trainer.callback_metrics:
            hint = did_you_mean(self.monitor, map(str, trainer.callback_metrics))
            raise CompressionError(f"{self.state_key}: nobody logs {self.monitor!r}. {hint}")
        if not self._begun:
            self._look_before(trainer, pl_module, self._metrics)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the report of the network that is left."""
        if self._validated != self._moment(trainer):
            self._metrics = self._evaluate(trainer, pl_module)
        if trainer.is_global_zero:
            self._write(trainer, pl_module, FINISHED)
            for logger in trainer.loggers:
                self._publish(logger, pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Write what is known of a fit that breaks off; what went wrong is not hidden by another error."""
        if self._session is None or self._before is None or not trainer.is_global_zero:
            return
        what = f"{type(exception).__name__}: {exception}".strip(": ")
        if self._validated != self._moment(trainer):
            self._miss("Metrics after are those of the last validation: the network has changed since.")
        try:
            self._write(trainer, pl_module, f"The fit broke off at epoch {self.session.time:.4g} ({what}).")
        except Exception as error:
            warnings.warn(f"{self.state_key}: no report of the fit that broke off: {error}", stacklevel=2)

    def state_dict(self) -> dict[str, Any]:
        """What was before the first cut."""
        return {
            "before": None if self._before is None else json.dumps(asdict(self._before)),
            "answers": self._answers,
            "curves": json.dumps(self._curves),
            "unknown": list(self._unknown),
            "first_entry": self._first_entry,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with what was before the first cut."""
        before = state_dict["before"]
        self._before = None if before is None else network_from_state(json.loads(before))
        self._answers = None if state_dict["answers"] is None else tuple(state_dict["answers"])
        self._curves = curves_from_state(json.loads(state_dict["curves"]))
        self._unknown = dict.fromkeys(state_dict["unknown"])
        self._first_entry, self._resumed = state_dict["first_entry"], True

    # -- looking ------------------------------------------------------------------------------------------------------

    @property
    def _begun(self) -> bool:
        """Whether the network is no longer the one before."""
        others = (callback for callback in self.session.callbacks if not isinstance(callback, CompressionReport))
        entries = islice(self.session.journal, self._first_entry, None)
        return any(e.kind == "cut" for e in entries) or not all(isinstance(one, CUTS_ARE_TOLD) for one in others)

    def _moment(self, trainer: L.Trainer) -> tuple[int, ...]:
        """Another one after each step and each change of the network that the Journal tells."""
        changes = sum(entry.kind in ("cut", "rollback") for entry in self.session.journal)
        return trainer.global_step, changes, len(self.session.record.edits)

    def _miss(self, sentence: str) -> None:
        self._unknown[sentence] = None

    def _evaluate(self, trainer: L.Trainer, module: L.LightningModule) -> dict[str, float]:
        """Every process validates: the module's own metrics may wait for the others."""
        try:
            return evaluate_copy(trainer, module)
        except CompressionError:
            self._miss("Metrics: the fit had no validation data.")
            return {}

    def _look_before(self, trainer: L.Trainer, module: L.LightningModule, metrics: dict[str, float]) -> None:
        if trainer.is_global_zero:
            with isolated_random_states():
                self._look(trainer, module, metrics)

    def _look(self, trainer: L.Trainer, module: L.LightningModule, metrics: dict[str, float]) -> None:
        self._before = fit_network(self.session, "before", 0, metrics, self._miss)
        self._answers = self._predict(trainer, module)
        if self._measures:
            try:
                batches = list(islice(private.validation_batches(trainer, module), PROBE_BATCHES))
                found = sensitivity(module, batches)
                self._curves = {name: tuple(sorted(points.items())) for name, points in found.costs.items()}
            except Exception as error:  # whatever a user's forward may raise: the report then says less
                self._miss(f"What zeros cost in each layer: {error}.")

    def _predict(self, trainer: L.Trainer, module: L.LightningModule) -> tuple[Tensor, Tensor] | None:
        if not self._samples or not trainer.val_dataloaders:
            return None
        if trainer.world_size > 1:
            self._miss("Answers are compared on the first process's share of the validation data.")
        try:
            return predict(module, private.validation_batches(trainer, module), self._samples)
        except CompressionError as error:
            self._miss(f"Which answers changed: {error}.")
            return None

    def _compared(self, trainer: L.Trainer, module: L.LightningModule) -> Answers | None:
        before, after = self._answers, self._predict(trainer, module)
        if before is None or after is None:
            return None
        if before[1].tolist() != after[1].tolist():
            self._miss("Which answers changed: the validation data come in another order each time.")
            return None
        return compare_answers(before[0], after[0], after[1])

    def _measured_curves(self) -> dict[str, tuple[tuple[float, float], ...]]:
        """Those of a WeightPruning that allocates by them, or our own."""
        for callback in self.session.callbacks:
            if isinstance(callback, WeightPruning) and callback.curves is not None:
                return {name: tuple(sorted(points.items())) for name, points in callback.curves.costs.items()}
        return self._curves

    # -- writing ------------------------------------------------------------------------------------------------------

    @isolated_random_states()
    def _write(self, trainer: L.Trainer, module: L.LightningModule, status: str) -> None:
        session = self.session
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._first_entry:
            self._miss(f"{self._first_entry} earlier entries of the Journal, from before this fit, are left out.")
        file = None
        with weights_as_seen(session):
            after = fit_network(session, "after", round(session.time), self._metrics, self._miss)
            before = self._before or after
            if self._file is not None and status == FINISHED:
                file = write_file(module, self.folder / self._file, before, after)
            report = fit_report(
                session, (before, after), monitor=self._followed(), mode=self.mode, first_entry=self._first_entry
            )
        answers = self._compared(trainer, module) if status == FINISHED else None
        self.report = replace(
            report,
            config=describe_fit(trainer, module),
            file=file,
            status=status,
            unknown=tuple(self._unknown),
            answers=answers,
            rival=self._rival,
            sensitivity=self._measured_curves(),
        )
        text = self.report.to_json()
        write_atomically(self.folder / "report.json", lambda target: target.write(text.encode()))
        page = render_page(self.report)
        write_atomically(self.page, lambda target: target.write(page.encode()))

    def _followed(self) -> str:
        """The metric that the report follows."""
        if self.monitor is not None:
            return self.monitor
        gates = (getattr(callback, "recover", None) for callback in self.session.callbacks)
        asked = [str(gate.monitor) for gate in gates if gate is not None]
        scores = [name for name in sorted(self._metrics) if "loss" not in name and not name.startswith("compress/")]
        return next(iter([*asked, *scores, *sorted(self._metrics)]), "no metric")

    def _publish(self, logger: Any, module: L.LightningModule) -> None:
        if not isinstance(logger, WandbLogger) or self.report is None:
            return
        try:
            models = list(self._models())
            send_report(logger, self.report, draw_figures(self.report), module=module, models=models)
        except Exception as error:
            warnings.warn(f"{self.state_key}: W&B did not take the report, which is in {self.folder}: {error}",
                          stacklevel=2)  # fmt: skip

    def _models(self) -> Iterable[ModelFiles]:
        assert self.report is not None
        metadata = {**self.report.after.cost, **self.report.after.metrics, "plan": list(self.report.plan)}
        savers = [callback for callback in self.session.callbacks if isinstance(callback, SaveCompressed)]
        best = [saver.best_path for saver in savers if saver.best is not None and saver.best_path.exists()]
        if best:
            yield ModelFiles(best[:1], ["best"], {"value": savers[0].best})
        if self.report.file is not None:
            metadata |= {"file_bytes": self.report.file.bytes, "file_ratio": self.report.file.ratio}
            path = self.folder / self.report.file.name
            yield ModelFiles([path], ["latest"] if best else ["best", "latest"], metadata)
