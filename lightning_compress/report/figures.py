"""Figures over time: metric and size of a run, and how faithful a student was to its teachers."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_compress.errors import CompressionError
from lightning_compress.report.drawing import BLUE, FAINT, GREEN, ORANGE, PURPLE, RED, new_figure, write
from lightning_compress.report.history import Event, History


def draw_history(history: History, monitor: str) -> Figure:
    """Metric and size over time, with every cut, recovery and rollback marked."""
    with new_figure(5) as figure:
        metric, size = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1))
        _draw_metric(metric, history, monitor)
        _draw_size(size, history)
        for axes in (metric, size):
            _draw_moments(axes, history)
        for name, time in history.stages:
            write(size, name, (time, 0), (5, 4), FAINT, xycoords=("data", "axes fraction"))
        size.set_xlabel("epochs since the run began")
        size.set_xlim(0, max(history.end, 1) * 1.15)
        size.set_xticks([tick for tick in size.get_xticks() if tick <= history.end])
    return figure


FIDELITY_PANELS = {
    "agreement": "same answer as the teacher",
    "kl_to_teacher": "KL to the teacher, nats",
    "nll": "negative log-likelihood, nats",
    "ece": "calibration error",
}


def draw_fidelity(history: History) -> Figure:
    """How faithful a student has been to its teachers, and how far either can be trusted, over time.

    Raises:
        CompressionError: the run had no distillation that was compared.
    """
    if not history.fidelity:
        raise CompressionError("No validation of this run compared a student with a teacher: Distillation(fidelity=).")
    with new_figure(4.6) as figure:
        panels = figure.subplots(2, 2, sharex=True)
        for axes, (panel, title) in zip(panels.flat, FIDELITY_PANELS.items(), strict=True):
            _draw_fidelity_panel(axes, history, panel)
            axes.set_title(f"{title}, on validation data", loc="left")
            axes.set_xlim(0, max(history.end, 1) * 1.2)
        for axes in panels[1]:
            axes.set_xlabel("epochs since the run began")
    return figure


def _draw_fidelity_panel(axes: Axes, history: History, panel: str) -> None:
    """One curve, or the student's and the teacher's; of each distillation. Each ends with its name and last value."""
    begins = tuple(f"{who}{panel}" for who in ("", "student_", "teacher_"))
    shown = {name: curve for name, curve in history.fidelity.items() if name.startswith(begins)}
    for name, curve in shown.items():
        times, values = _columns(curve)
        color = ORANGE if name.startswith("teacher") else BLUE
        axes.plot(times, values, color=color, linewidth=1.5, marker="." if len(times) == 1 else "")
        label = " ".join(word for word in name.split("_") if word not in panel.split("_"))
        text = f"{values[-1]:.3g} {label}".strip()
        write(axes, text, (times[-1], values[-1]), (5, 0), color, va="center", fontweight="bold")
    if shown:
        values = [value for curve in shown.values() for _, value in curve]
        low, high = _central_range([-value for value in values])  # what falls begins high
        axes.set_ylim(*(_central_range(values) if panel == "agreement" else (-high, -low)))


def _draw_metric(axes: Axes, history: History, monitor: str) -> None:
    times, values = _columns(history.metric)
    axes.plot(times, values, color=BLUE, linewidth=1.5)
    for time, value in history.reference:
        axes.plot([time, history.end], [value, value], color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
        above = not values or value > values[-1]
        place = {"va": "bottom" if above else "top", "fontsize": 8.5}
        write(axes, f"{value:.4f}\nbefore cuts", (history.end, value), (6, 6 if above else -6), FAINT, **place)
    if values:
        write(axes, f"{values[-1]:.4f}", (history.end, values[-1]), (6, 0), BLUE, va="center", fontweight="bold")
        axes.set_ylim(*_central_range([*values, *(value for _, value in history.reference)]))
    axes.set_title(f"{monitor} on validation data", loc="left")


def _draw_size(axes: Axes, history: History) -> None:
    """What is left, on a logarithmic axis: cuts that each take the same share are then steps of the same height."""
    lowest = 100.0
    for (name, curve), color in zip(history.removed.items(), (ORANGE, PURPLE), strict=False):
        times, removed = _columns(curve)
        left = [100 * (1 - share) for share in removed]
        axes.step([0.0, *times, history.end], [100.0, *left, left[-1]], where="post", color=color, linewidth=1.5)
        text = f"{left[-1]:.1f} %" + (f"\n{name}" if len(history.removed) > 1 else "")
        write(axes, text, (history.end, left[-1]), (6, 0), color, va="center", fontweight="bold")
        lowest = min(lowest, *left)
    _mark(axes, history.events, "recovery", ".", GREEN, "recovered: the next cut may come")
    _mark(axes, history.events, "rollback", "X", RED, "rolled back")
    ticks = [tick for tick in (100, 50, 20, 10, 5, 2, 1, 0.5, 0.2, 0.1) if tick >= lowest * 0.8]
    axes.set_yscale("log")
    axes.set_ylim(min(lowest * 0.6, 60), 115)
    axes.set_yticks(ticks, [f"{tick:g} %" for tick in ticks])
    axes.set_yticks([], minor=True)
    axes.set_title("left of what is being compressed", loc="left")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(
            loc="lower right",
            bbox_to_anchor=(1, 1),
            ncols=2,
            frameon=False,
            handletextpad=0.1,
            columnspacing=1,
            borderaxespad=0.1,
        )


def _draw_moments(axes: Axes, history: History) -> None:
    """Lines where a stage begins and where a cut was taken back; the axis ends with the run."""
    for _, time in history.stages[1:]:
        axes.axvline(time, color=FAINT, linewidth=0.8)
    for event in history.events:
        if event.kind == "rollback":
            axes.axvline(event.time, color=RED, linewidth=0.8, alpha=0.35)
    axes.spines["bottom"].set_bounds(0, history.end)


def _mark(axes: Axes, events: Sequence[Event], kind: str, marker: str, color: str, label: str) -> None:
    """Marks lie at what was left when it happened."""
    marks = [
        (event.time, 100 * (1 - event.reached)) for event in events if event.kind == kind and event.reached is not None
    ]
    if marks:
        times, left = _columns(marks)
        axes.plot(times, left, marker, color=color, markersize=7, label=label)


def _columns(pairs: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in pairs], [y for _, y in pairs]


def _central_range(values: Sequence[float]) -> tuple[float, float]:
    """Limits that leave out the first climb from chance, which would flatten everything else."""
    ordered = sorted(values)
    low, high = ordered[int(0.05 * len(ordered))], ordered[-1]
    margin = max(0.12 * (high - low), 1e-3)
    return low - margin, high + margin
