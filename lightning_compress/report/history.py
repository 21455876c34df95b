"""The Journal as curves: metric and size over time, with what happened marked on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lightning_compress.report.report import Report

FIDELITY = ("agreement", "kl_to_teacher", "student_nll", "teacher_nll", "student_ece", "teacher_ece")
"""What a distillation logs after each validation, under ``compress/``."""


@dataclass(frozen=True)
class Event:
    """Something at a moment; ``time`` in epochs since the run began, ``data`` the figures behind the words."""

    kind: str
    time: float
    text: str
    data: Mapping[str, Any] = field(default_factory=dict)

    @property
    def reached(self) -> float | None:
        """What the callback had reached then."""
        return self.data.get("reached")


@dataclass
class History:
    """Curves over epochs since the run began.

    Attributes:
        stages: name and first epoch of each stage.
        metric: (time, value) of each validation.
        removed: for each callback the (time, share) after each cut and rollback.
        events: cuts, recoveries, rollbacks and stops, in order.
        reference: (from, to, value): what had to be reached again after a cut.
        end: epochs in all.
        fidelity: for each figure of a distillation (``agreement``, ``student_ece``, ...) the (time, value) of each
            validation; the name of the distillation, if it has one, stands behind the figure's.
    """

    stages: list[tuple[str, float]] = field(default_factory=list)
    metric: list[tuple[float, float]] = field(default_factory=list)
    removed: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    reference: list[tuple[float, float]] = field(default_factory=list)
    end: float = 0.0
    fidelity: dict[str, list[tuple[float, float]]] = field(default_factory=dict)


def read_history(report: Report) -> History:
    """The curves that the Journal of ``report`` holds."""
    history = History()
    lengths = {network.stage: network.epochs for network in report.networks}
    offset = 0.0
    for entry in report.journal:
        if entry["kind"] == "start" and "stage" in entry["data"]:
            length = lengths.get(entry["data"]["stage"], entry["data"].get("epochs", 0))
            offset, history.end = history.end, history.end + length
            history.stages.append((entry["data"]["stage"], offset))
        _add(history, entry, offset + (entry["epoch"] or 0.0), report.monitor)
    return history


def _add(history: History, entry: dict[str, Any] | Any, time: float, monitor: str) -> None:
    kind, data = entry["kind"], entry["data"]
    if kind == "measurement" and monitor in data:
        history.metric.append((time, data[monitor]))
    if kind == "measurement":
        for name, value in data.items():
            figure = name.removeprefix("compress/")
            if figure != name and figure.startswith(FIDELITY):
                history.fidelity.setdefault(figure, []).append((time, value))
    if kind in ("cut", "rollback") and takes_away(data):
        curve = history.removed.setdefault(data["callback"], [(time, data["before"])])
        curve.append((time, data["reached"]))
    if kind in ("cut", "recovery", "rollback", "stop"):
        history.events.append(Event(kind, time, entry["text"], data))
    if "reference" in data:
        history.reference.append((time, data["reference"]))


def takes_away(data: Mapping[str, Any]) -> bool:
    """Whether a cut removed something; clustering counts layers that keep all of their weights.

    >>> takes_away({"quantity": "sparsity"}), takes_away({"quantity": "layers clustered"})
    (True, False)
    """
    return not str(data.get("quantity", "")).endswith("clustered")
