"""One line for each stage: how far it is, the metric, what is left; live in a terminal, plain elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from lightning_compress.plan import Entry, Journal, Record
from lightning_compress.report.history import takes_away

PLAIN_LINES = 4
"""Lines that a stage prints where there is no terminal."""


class _TimeLeft(ProgressColumn):
    """Time left; nothing once the stage is done."""

    def render(self, task: Task) -> Text:
        return Text(time_left(task), style="dim")


def time_left(task: Task) -> str:
    """In minutes and seconds; nothing where that is not known, or the task is done."""
    left = task.time_remaining
    return "" if task.finished or left is None else f"{int(left) // 60}:{int(left) % 60:02d} left"


class StageDisplay:
    """The lines of all stages of a run; a context that keeps them live.

    Args:
        console: where they appear.
        width: of the longest stage name.
    """

    def __init__(self, console: Console, width: int) -> None:
        self._console, self._width = console, width
        self._live = console.is_terminal
        self._progress = Progress(
            TextColumn("{task.description}", style="bold"),
            BarColumn(20),
            TextColumn("{task.fields[epochs]}"),
            TextColumn("{task.fields[text]}", markup=False),
            _TimeLeft(),
            console=console,
            disable=not self._live,
        )

    def __enter__(self) -> StageDisplay:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def begin(self, stage: str, epochs: int) -> StageLine:
        """A line for a stage."""
        return StageLine(self, stage.ljust(self._width), epochs)

    def add_task(self, name: str, epochs: int) -> Any:
        """Lower door for :class:`StageLine`."""
        return self._progress.add_task(name, total=epochs, epochs=f"0/{epochs}", text="")

    def update(self, task: Any, name: str, done: float, epochs: int, text: str, *, plain: bool) -> None:
        """Draw a line again; where there is no terminal, print it if ``plain``."""
        count = f"{int(done):>{len(str(epochs))}}/{epochs}"
        self._progress.update(task, completed=done, epochs=count, text=text)
        if plain and not self._live:
            left = time_left(self._progress.tasks[task])
            line = f"{name}  {count}  {text}".rstrip() + f"   {left}" * bool(left)
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)


class StageLine(Callback):
    """The line of one stage; in the stage's Trainer it keeps itself up to date."""

    def __init__(self, display: StageDisplay, name: str, epochs: int) -> None:
        self._display, self._name, self._epochs = display, name, epochs
        self._task = display.add_task(name, epochs)
        self._text = ""

    def finish(self, text: str) -> None:
        """The stage is done."""
        self._display.update(self._task, self._name, self._epochs, self._epochs, text, plain=True)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin where a resumed fit goes on."""
        self._draw(trainer.current_epoch)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move on within the epoch."""
        self._draw(trainer.current_epoch + (batch_idx + 1) / max(int(trainer.num_training_batches), 1))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """New figures."""
        done = trainer.current_epoch + 1
        self._text = status_text(trainer.callback_metrics, Record.of(pl_module).journal)
        self._draw(done, plain=done < self._epochs and _is_due(done, self._epochs))

    def _draw(self, done: float, *, plain: bool = False) -> None:
        self._display.update(self._task, self._name, done, self._epochs, self._text, plain=plain)


def status_text(metrics: Mapping[str, Any], journal: Journal) -> str:
    """Metric, what is left, and the number of cuts since the stage began.

    >>> journal = Journal()
    >>> journal.add("cut", "...", callback="WeightPruning", reached=0.965)
    >>> status_text({"val_acc": 0.9811, "val_loss": 0.1}, journal)
    'val_acc 0.981   kept 3.5 %   1 cut'
    """
    figures = [name for name in metrics if name.startswith("val_") and name != "val_loss"]
    parts = [f"{name} {float(metrics[name]):.3f}" for name in figures]
    entries = _of_this_stage(journal)
    reached = {entry.data["callback"]: entry.data for entry in entries if entry.kind in ("cut", "rollback")}
    for data in reached.values():
        if not takes_away(data):
            parts.append(f"{100 * float(data['reached'] or 0):.0f} % of {data['quantity']}")
            continue
        counted = str(data.get("quantity", "")).removesuffix(" removed")
        share = f"kept {100 * (1 - float(data['reached'] or 0)):.1f} %"
        parts.append(share if counted in ("", "sparsity") else f"{share} of {counted}")
    taken = [entry for entry in entries if takes_away(entry.data)]
    cuts, rolled_back = (sum(entry.kind == kind for entry in taken) for kind in ("cut", "rollback"))
    if cuts:
        parts.append(f"{cuts} cut{'s' * (cuts > 1)}" + f", {rolled_back} rolled back" * (rolled_back > 0))
    return "   ".join(parts)


def _of_this_stage(journal: Journal) -> list[Entry]:
    entries = list(journal)
    starts = [position for position, entry in enumerate(entries) if entry.kind == "start"]
    return entries[starts[-1] :] if starts else entries


def _is_due(done: int, epochs: int) -> bool:
    return done * PLAIN_LINES // epochs > (done - 1) * PLAIN_LINES // epochs
