"""What each layer takes, before and after: bytes, arithmetic, zeros and bits, as bars."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_compress.report.drawing import BLUE, FAINT, GREEN, INK, ORANGE, PURPLE, new_figure, write
from lightning_compress.report.report import Layer, Report

Pair = tuple[Layer | None, Layer | None]
"""A layer before and after; None where it is gone, or new."""

MOST_ROWS = 60


def pair_layers(before: Sequence[Layer], after: Sequence[Layer]) -> list[Pair]:
    """Layers of the same name side by side, in the order of ``before``; what is new comes last.

    >>> fc, head = Layer("fc", (2, 2), 4, 4), Layer("head", (2, 2), 4, 4)
    >>> [(old and old.name, new and new.name) for old, new in pair_layers([fc], [head])]
    [('fc', None), (None, 'head')]
    """
    old, new = {layer.name: layer for layer in before}, {layer.name: layer for layer in after}
    return [(layer, new.get(name)) for name, layer in old.items()] + [
        (None, layer) for name, layer in new.items() if name not in old
    ]


def file_bytes(report: Report) -> dict[str, int]:
    """Bytes of each parameter coded by itself, where the run wrote a file."""
    return {} if report.file is None else {str(row["name"]): int(row["coded_bytes"]) for row in report.file.layers}


def draw_layers(report: Report) -> Figure:
    """Bytes, multiply-accumulates, sparsity and bits of each layer; faint before, strong after.

    Of a network with more than 60 weight tensors, the largest are drawn.
    """
    pairs = pair_layers(report.before.layers, report.after.layers)
    if len(pairs) > MOST_ROWS:
        edge = sorted((_weights(pair) for pair in pairs), reverse=True)[MOST_ROWS - 1]
        pairs = [pair for pair in pairs if _weights(pair) >= edge][:MOST_ROWS]
    coded = file_bytes(report)

    def size(layer: Layer, place: int) -> float:
        return coded.get(layer.parameter, layer.bytes) if place else layer.bytes

    with new_figure(0.75 + 0.3 * max(len(pairs), 1)) as figure:
        panels = figure.subplots(1, 4, sharey=True)
        where = "bytes in the file" if coded else "bytes, dense"
        _bars(panels[0], pairs, size, where, BLUE, _short)
        _bars(panels[1], pairs, lambda layer, _: layer.macs, "MACs, dense", ORANGE, _short)
        _bars(panels[2], pairs, lambda layer, _: 100 * (1 - layer.kept / layer.weights), "zeros", GREEN, _percent, 100)
        _bars(panels[3], pairs, lambda layer, _: layer.bits, "bits of a kept weight", PURPLE, "{:.0f}".format, 32)
        panels[0].set_yticks(range(len(pairs)), [(old or new).name for old, new in pairs])  # type: ignore[union-attr]
        panels[0].invert_yaxis()
        figure.supxlabel(
            f"faint: after {report.before.stage}; strong: after {report.after.stage}", color=FAINT, fontsize=9
        )
    return figure


def _weights(pair: Pair) -> int:
    return max(layer.weights for layer in pair if layer is not None)


def _bars(
    axes: Axes,
    pairs: Sequence[Pair],
    value: Callable[[Layer, int], float | None],
    title: str,
    color: str,
    text: Callable[[float], str],
    largest: float | None = None,
) -> None:
    """A panel: each layer's value before behind that after, which stands at the bar's end."""
    rows = [[None if layer is None else value(layer, place) for place, layer in enumerate(pair)] for pair in pairs]
    largest = largest or max((v for row in rows for v in row if v), default=1)
    for place, (before, after) in enumerate(rows):
        axes.barh(place, before or 0, height=0.66, color=color, alpha=0.25, linewidth=0)
        axes.barh(place, after or 0, height=0.66, color=color, linewidth=0)
        label = ("gone" if pairs[place][1] is None else "unknown") if after is None else text(after)
        ink = FAINT if after is None else INK
        write(axes, label, (max(before or 0, after or 0), place), (4, 0), ink, va="center", fontsize=8.5)
    axes.set_xlim(0, largest * 1.5)
    axes.set_xticks([])
    axes.tick_params(axis="y", length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title, loc="left")


def _short(value: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"


def _percent(value: float) -> str:
    return f"{value:.1f} %"
