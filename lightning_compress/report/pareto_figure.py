"""Metric against cost, a panel for each cost: the front, what it beats, the chosen point, and the honest rival."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from lightning_compress.report.drawing import BLUE, FAINT, ORANGE, RED, new_figure, write
from lightning_compress.report.pareto import COSTS, Point, front

HEIGHT = 3.3
"""Inches of a panel."""


def draw_pareto(
    points: Sequence[Point], metric: str, costs: Sequence[str], mode: str, chosen: Point | None = None
) -> Figure:
    """Each panel has the means over the seeds, their 95 % intervals, the front as steps, and beaten points faint.

    Args:
        points: those of the sweep, rivals among them.
        metric: on the upright axis.
        costs: one panel each, on a logarithmic axis.
        mode: "max" or "min" of the metric is better.
        chosen: the point to mark.
    """
    with new_figure(HEIGHT * len(costs)) as figure:
        panels = figure.subplots(len(costs), 1, squeeze=False)[:, 0]
        for number, (axes, cost) in enumerate(zip(panels, costs, strict=True)):
            known = [point for point in points if point.has(cost) and point.has(metric)]
            _draw_panel(axes, known, metric, cost, mode, chosen)
            if number == 0:
                axes.legend(loc="lower right", frameon=False)
    return figure


def _draw_panel(axes: Axes, points: Sequence[Point], metric: str, cost: str, mode: str, chosen: Point | None) -> None:
    own, rivals = [p for p in points if not p.rival], [p for p in points if p.rival]
    best = front(own, metric, cost, mode)
    for point in own:
        _draw_point(axes, point, metric, cost, BLUE, faint=point not in best)
    _draw_front(axes, best, metric, cost, BLUE, "front")
    for point in rivals:
        _draw_point(axes, point, metric, cost, ORANGE, faint=False)
    if rivals:
        ordered = sorted(rivals, key=lambda point: point.mean(cost))
        places = [(p.mean(cost), p.mean(metric)) for p in ordered]
        axes.plot(
            *zip(*places, strict=True), color=ORANGE, linewidth=1.2, marker=".", label="small networks, as they are"
        )
    before = [trial.before[metric] for point in own for trial in point.trials if metric in trial.before]
    if before:
        axes.axhline(fmean(before), color=FAINT, linewidth=1, linestyle=(0, (4, 3)), label="before compression")
    if chosen in own and chosen is not None:
        place = (chosen.mean(cost), chosen.mean(metric))
        axes.plot(
            *place, "o", markersize=13, markerfacecolor="none", markeredgecolor=RED, label="chosen, on validation"
        )
        write(axes, f"{place[1]:.4g}", place, (9, -13), RED, fontweight="bold")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(10, (1, 2, 3, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(_short))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_title(f"{metric} against {COSTS[cost]}", loc="left")
    axes.set_xlabel(f"{COSTS[cost]}, logarithmic: cheaper to the left")


def _draw_point(axes: Axes, point: Point, metric: str, cost: str, color: str, *, faint: bool) -> None:
    """A mean, and the interval over its seeds as a bar."""
    alpha = 0.3 if faint else 1.0
    x, y = point.mean(cost), point.mean(metric)
    interval = point.interval(metric)
    if interval is not None:
        axes.plot([x, x], interval, color=color, alpha=alpha * 0.6, linewidth=1.5, solid_capstyle="butt")
    axes.plot(x, y, "o", color=color, alpha=alpha, markersize=5, markeredgewidth=0)


def _draw_front(axes: Axes, best: Sequence[Point], metric: str, cost: str, color: str, label: str) -> None:
    """Steps: between two points of a front there is nothing that has been seen."""
    xs, ys = [point.mean(cost) for point in best], [point.mean(metric) for point in best]
    axes.plot(xs, ys, color=color, drawstyle="steps-post", linewidth=1.4, label=label)


def _short(value: float, _: int) -> str:
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
