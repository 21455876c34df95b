"""How the report draws: each figure on a Figure of its own, no global state of matplotlib touched."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO, StringIO
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED, PURPLE = (
    "#3b7dc4",
    "#d9822b",
    "#2a9d78",
    "#c8453b",
    "#8d6bb8",
)  # apart for the colour-blind, on light and dark
INK, FAINT = "#1f2933", "#8a94a0"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "legend.fontsize": 9,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
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


WIDTH = 8.4
"""Inches of a figure that is as wide as the page."""


@contextmanager
def new_figure(height: float) -> Iterator[Figure]:
    """An empty figure as wide as the page, and the report's style while it is being drawn."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def to_svg(figure: Figure, name: str) -> str:
    """An ``<svg>`` element for a page: ink takes the page's text colour, ``name`` keeps its ids apart."""
    target = StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure.savefig(target, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = target.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    return re.sub(r'href="#', f'href="#{name}-', text)


def to_png(figure: Figure) -> bytes:
    """The figure as a picture on white."""
    target = BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(target, format="png", dpi=144, facecolor="white")
    return target.getvalue()


def write(
    axes: Axes, text: str, place: tuple[float, float], offset: tuple[float, float], color: str, **options: Any
) -> None:
    """``text`` at a place in data coordinates, ``offset`` points away from it."""
    axes.annotate(text, place, xytext=offset, textcoords="offset points", color=color, **options)
