"""The weights themselves: how their values spread, which of them are zero, and what zeros cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from lightning_compress.errors import CompressionError
from lightning_compress.report.collect import short_names
from lightning_compress.report.drawing import BLUE, FAINT, GREEN, INK, ORANGE, PURPLE, RED, new_figure, write
from lightning_compress.report.layer_figures import pair_layers
from lightning_compress.report.report import Histogram, Layer, Report

MOST_PANELS = 9
MOST_CURVES = 12


def draw_values(report: Report) -> Figure:
    """Histograms of the weights that are not zero, before as an outline and after filled, with the codebooks' values.

    The nine largest weight tensors are drawn; the heights of both are shares of the highest bin, since the entries that
    are left may be a few per cent.

    Raises:
        CompressionError: the report has no histograms.
    """
    shown = _largest(report)
    if not shown:
        raise CompressionError("The report has no histograms: it was written by a release that made none.")
    columns = min(3, len(shown))
    rows = ceil(len(shown) / columns)
    with new_figure(0.3 + 1.65 * rows) as figure:
        panels = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axes in panels:
            axes.set_axis_off()
        for axes, (before, after) in zip(panels, shown, strict=False):
            axes.set_axis_on()
            _draw_values(axes, before, after)
    return figure


def _largest(report: Report) -> list[tuple[Layer | None, Layer]]:
    pairs = pair_layers(report.before.layers, report.after.layers)
    shown = [(before, after) for before, after in pairs if after is not None and after.values is not None]
    edge = sorted((after.weights for _, after in shown), reverse=True)[:MOST_PANELS][-1] if shown else 0
    return [pair for pair in shown if pair[1].weights >= edge][:MOST_PANELS]


def _draw_values(axes: Axes, before: Layer | None, after: Layer) -> None:
    assert after.values is not None
    if before is not None and before.values is not None and before.values != after.values:
        edges, heights = _steps(before.values)
        axes.stairs(heights, edges, color=FAINT, linewidth=1)
    edges, heights = _steps(after.values)
    lines = after.values.codebook
    if lines:
        axes.vlines(lines, 0, 1, color=ORANGE, linewidth=1.1)
    else:
        axes.stairs(heights, edges, fill=True, color=BLUE, alpha=0.75, linewidth=0)
    left = f"{after.kept / after.weights:.1%} kept"
    text = f"{left}, {len(lines)} values" if lines else left
    write(axes, text, (1, 1), (0, -1), ORANGE if lines else BLUE, xycoords="axes fraction", ha="right", va="bottom",
          fontsize=8.5)  # fmt: skip
    axes.set_title(after.name, loc="left")
    axes.set_ylim(0, 1.08)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.locator_params(axis="x", nbins=4)


def _steps(values: Histogram) -> tuple[list[float], list[float]]:
    """Edges, and heights as shares of the highest bin."""
    width = (values.high - values.low) / len(values.counts)
    highest = max(values.counts)
    edges = [values.low + width * place for place in range(len(values.counts) + 1)]
    return edges, [count / highest for count in values.counts]


def draw_sensitivity(curves: Mapping[str, Sequence[tuple[float, float]]]) -> Figure:
    """Cost of pruning one weight tensor by itself, over the share of it that is zero.

    Args:
        curves: parameter -> (share, cost); the twelve that cost most at their largest share are drawn.

    Raises:
        CompressionError: no curves.
    """
    if not curves:
        raise CompressionError("Nobody measured a sensitivity in this run.")
    worst = sorted(curves, key=lambda name: -max(curves[name])[1])[:MOST_CURVES]
    short = short_names(list(curves))
    colors = (RED, ORANGE, PURPLE, BLUE, GREEN)
    with new_figure(3.4) as figure:
        axes = figure.subplots()
        ends: list[float] = []
        top = max(max(cost for _, cost in curves[name]) for name in worst) or 1.0
        for place, name in enumerate(worst):
            points = sorted([(0.0, 0.0), *curves[name]])
            color = colors[place] if place < len(colors) else FAINT
            axes.plot([100 * x for x, _ in points], [y for _, y in points], ".-", color=color, linewidth=1.5)
            height = points[-1][1]
            while any(abs(height - other) < 0.055 * top for other in ends):
                height -= 0.02 * top
            ends.append(height)
            write(axes, short[name], (100 * points[-1][0], height), (7, 0), color, va="center", fontsize=8.5)
        axes.set_xlim(0, 118)
        axes.set_xticks([0, 25, 50, 75, 90], ["0", "25 %", "50 %", "75 %", "90 %"])
        axes.set_xlabel("zeros in one weight tensor, the others whole")
        axes.set_title("change of the outputs, relative to their mean square", loc="left")
    return figure


def draw_masks(module: nn.Module, most: int = 6) -> dict[str, Figure]:
    """A picture of which entries of a weight tensor are kept, for the largest that have zeros; rows are outputs.

    Args:
        module: the network.
        most: pictures.
    """
    pruned = {name: tensor.detach().cpu() for name, tensor in module.named_parameters() if tensor.dim() > 1}
    pruned = {name: tensor for name, tensor in pruned.items() if int((tensor == 0).sum()) > 0}
    largest = sorted(pruned, key=lambda name: -pruned[name].numel())[:most]
    return {name: _mask(name, pruned[name]) for name in pruned if name in largest}


def _mask(name: str, tensor: Tensor) -> Figure:
    rows = (tensor.flatten(1) != 0).float().numpy()
    with new_figure(min(max(8.0 * rows.shape[0] / rows.shape[1], 0.8), 8.0) + 0.5) as figure:
        axes = figure.subplots()
        axes.imshow(rows, cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(True)
        axes.set_title(f"{name}: {rows.mean():.1%} kept", loc="left", color=INK)
    return figure
