"""One figure for every way to save: accuracy against cost, whatever it was that cost less."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from lightning_compress.errors import CompressionError
from lightning_compress.report.drawing import BLUE, FAINT, GREEN, ORANGE, PURPLE, RED, new_figure, write

COLORS = (BLUE, ORANGE, GREEN, PURPLE, RED)
TICKS = (1, 2, 5, 10, 20, 50, 100, 200)


@dataclass(frozen=True)
class CostPoint:
    """What one setting reaches.

    Attributes:
        cost: per cent of the plain network's, above 0.
        accuracy: in per cent.
        error: half the length of the bar, in points; 0 for none.
    """

    cost: float
    accuracy: float
    error: float = 0.0


def draw_cost_curves(
    curves: Mapping[str, Sequence[CostPoint]],
    *,
    reference: CostPoint | None = None,
    cost: str = "mean multiply-accumulates of a sample, per cent of the plain network's",
) -> Figure:
    """Accuracy against cost, on a logarithmic axis, one line for each way.

    Args:
        curves: name -> points, in any order; up to five.
        reference: the plain network, drawn as a diamond with a line at its accuracy.
        cost: what the axis measures.

    Raises:
        CompressionError: no curve, more than five, one without points, or a cost that is not above 0.

    >>> figure = draw_cost_curves({"exits": [CostPoint(10, 97.5), CostPoint(30, 98.0)]}, reference=CostPoint(100, 98.1))
    >>> [text.get_text() for text in figure.axes[0].texts]
    ['plain 98.1', 'exits']
    """
    if not 1 <= len(curves) <= len(COLORS):
        raise CompressionError(f"{len(curves)} curves: between 1 and {len(COLORS)} can be told apart.")
    for name, points in curves.items():
        if not points or any(point.cost <= 0 for point in points):
            raise CompressionError(f"The curve {name!r} needs points, each at a cost above 0.")
    with new_figure(4.4) as figure:
        axes = figure.add_subplot()
        if reference is not None:
            axes.axhline(reference.accuracy, color=FAINT, linewidth=0.8, zorder=0)
            axes.plot(reference.cost, reference.accuracy, "D", color=FAINT)
            place = reference.cost, reference.accuracy
            write(axes, f"plain {reference.accuracy:.1f}", place, (0, 7), FAINT, ha="center")
        for (name, points), color in zip(curves.items(), COLORS, strict=False):
            ordered = sorted(points, key=lambda point: point.cost)
            costs, accuracies = [one.cost for one in ordered], [one.accuracy for one in ordered]
            errors = [one.error for one in ordered] if any(one.error for one in ordered) else None
            axes.errorbar(
                costs, accuracies, errors, color=color, marker="o", markersize=4, linewidth=1.5, elinewidth=0.8
            )
            write(axes, name, (costs[0], accuracies[0]), (-6, 0), color, ha="right", va="center", fontweight="bold")
        axes.set_xscale("log")
        axes.margins(x=0.18, y=0.12)
        low, high = axes.get_xlim()
        ticks = [tick for tick in TICKS if low <= tick <= high]
        axes.set_xticks(ticks, [f"{tick:g} %" for tick in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel(cost)
        axes.set_title("test accuracy, per cent", loc="left")
    return figure
