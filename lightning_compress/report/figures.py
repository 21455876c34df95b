"""The report's figures. Each is drawn on a Figure of its own: no global state of matplotlib is touched."""

from __future__ import annotations

import re
from collections.abc import Sequence
from io import BytesIO, StringIO

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lightning_compress.report.history import Event, History
from lightning_compress.report.report import Report

BLUE, ORANGE, GREEN, RED = "#3b7dc4", "#d9822b", "#2a9d78", "#c8453b"  # apart for the colour-blind, on light and dark
INK, FAINT = "#1f2933", "#8a94a0"
_RC = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


def draw_history(history: History, monitor: str) -> Figure:
    """Metric and size over time, with every cut, recovery and rollback marked."""
    with matplotlib.rc_context(_RC):
        figure = Figure(figsize=(8.4, 4.6), layout="constrained")
        FigureCanvasAgg(figure)
        metric, size = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        _draw_metric(metric, history, monitor)
        _draw_size(size, history)
        _draw_stages((metric, size), history)
        size.set_xlabel("epochs since the run began")
        size.set_xlim(0, max(history.end, 1) * 1.13)
    return figure


def _draw_metric(axes: Axes, history: History, monitor: str) -> None:
    times, values = _columns(history.metric)
    axes.plot(times, values, color=BLUE, linewidth=1.5)
    if values:
        _label(axes, history.end, values[-1], f"{monitor}\n{values[-1]:.4f}", BLUE)
        low, high = _central_range(values)
        axes.set_ylim(low, high)
    for time, value in history.reference:
        axes.plot([time, history.end], [value, value], color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_title(f"{monitor} on validation data", loc="left", fontsize=10.5, fontweight="bold")


def _draw_size(axes: Axes, history: History) -> None:
    for name, curve in history.removed.items():
        times, removed = _columns(curve)
        left = [100 * (1 - share) for share in removed]
        times, left = [0.0, *times, history.end], [100.0, *left, left[-1]]
        axes.step(times, left, where="post", color=ORANGE, linewidth=1.5)
        _label(axes, history.end, left[-1], f"{left[-1]:.1f} % left" + (f"\n{name}" if len(history.removed) > 1 else ""), ORANGE)
    _mark(axes, history.events, "cut", "|", ORANGE, "cut")
    _mark(axes, history.events, "recovery", ".", GREEN, "recovered")
    _mark(axes, history.events, "rollback", "X", RED, "rolled back")
    axes.set_ylim(0, 118)
    axes.set_yticks([0, 50, 100], ["0", "50", "100 %"])
    axes.set_title("what is left of what was to be compressed", loc="left", fontsize=10.5, fontweight="bold")
    if history.events:
        axes.legend(loc="upper left", ncols=3, frameon=False, fontsize=9, handletextpad=0.2, columnspacing=1.2)


def _mark(axes: Axes, events: Sequence[Event], kind: str, marker: str, color: str, label: str) -> None:
    """Marks lie at what was left when it happened."""
    marks = [(event.time, 100 * (1 - event.reached)) for event in events if event.kind == kind and event.reached is not None]
    if marks:
        times, left = _columns(marks)
        axes.plot(times, left, marker, color=color, markersize=8 if marker == "|" else 6, label=label)


def _draw_stages(panels: Sequence[Axes], history: History) -> None:
    for name, time in history.stages:
        for axes in panels:
            if time:
                axes.axvline(time, color=FAINT, linewidth=0.8)
        panels[0].annotate(
            name, (time, 0), xycoords=("data", "axes fraction"), xytext=(4, 4), textcoords="offset points", color=FAINT
        )


def draw_layers(report: Report) -> Figure:
    """Weights of each layer before and after, as bars on a logarithmic axis."""
    after = {layer.name: layer.kept for layer in report.after.layers}
    layers = report.before.layers
    with matplotlib.rc_context(_RC):
        figure = Figure(figsize=(8.4, 1.1 + 0.42 * len(layers)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for row, layer in enumerate(layers):
            kept = after.get(layer.name, 0)
            axes.barh(row, layer.weights, height=0.62, color=BLUE, alpha=0.28)
            axes.barh(row, kept, height=0.62, color=BLUE)
            text = f"{layer.weights:,} → {kept:,}  ({kept / layer.weights:.1%})"
            axes.annotate(text, (layer.weights, row), xytext=(6, 0), textcoords="offset points", va="center")
        axes.set_yticks(range(len(layers)), [layer.name for layer in layers])
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.set_xscale("log")
        largest = max((layer.weights for layer in layers), default=1)
        axes.set_xlim(1, largest**1.32)
        axes.spines["left"].set_visible(False)
        axes.set_title(
            f"weights that are not zero: {report.before.stage} (light) and {report.after.stage} (full)",
            loc="left", fontsize=10.5, fontweight="bold",
        )
    return figure


def to_svg(figure: Figure, name: str) -> str:
    """An ``<svg>`` element for a page: ink takes the page's text colour; ``name`` keeps its ids apart from other figures'."""
    target = StringIO()
    with matplotlib.rc_context({**_RC, "svg.hashsalt": name}):
        figure.savefig(target, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = target.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    return re.sub(r'href="#', f'href="#{name}-', text)


def to_png(figure: Figure) -> bytes:
    """The figure as a picture on white."""
    target = BytesIO()
    with matplotlib.rc_context(_RC):
        figure.savefig(target, format="png", dpi=144, facecolor="white")
    return target.getvalue()


def _columns(pairs: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in pairs], [y for _, y in pairs]


def _label(axes: Axes, x: float, y: float, text: str, color: str) -> None:
    axes.annotate(text, (x, y), xytext=(6, 0), textcoords="offset points", va="center", color=color, fontweight="bold")


def _central_range(values: Sequence[float]) -> tuple[float, float]:
    """Limits that leave out the first climb from chance, which would flatten everything else."""
    ordered = sorted(values)
    low, high = ordered[int(0.05 * len(ordered))], ordered[-1]
    margin = max(0.12 * (high - low), 1e-3)
    return low - margin, high + margin
