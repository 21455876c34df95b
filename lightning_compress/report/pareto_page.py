"""A sweep on one page: no network, no scripts, light and dark."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from html import escape

from matplotlib.figure import Figure
from rich.table import Table

from lightning_compress.report.drawing import to_svg
from lightning_compress.report.html import STYLE, figure_block, html_table, section
from lightning_compress.report.pareto import COSTS, Point, front

MARKED = "chosen"


def pareto_rows(
    points: Sequence[Point], metric: str, costs: Sequence[str], mode: str, chosen: Point | None
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Heading and rows, the cheapest first: label, runs, metric with half its interval, costs, and what it is."""
    cost = costs[0]
    best = front([point for point in points if not point.rival], metric, cost, mode)
    rows = []
    for point in sorted(points, key=lambda point: point.mean(cost)):
        kind = "rival" if point.rival else "front" if point in best else ""
        kind = MARKED if point is chosen else kind
        figures = [f"{point.mean(name):,.4g}" if name == "latency" else f"{point.mean(name):,.0f}" for name in costs]
        rows.append((point.label, str(len(point.trials)), mean_text(point, metric), *figures, kind))
    return ("", "runs", metric, *(COSTS[name] for name in costs), ""), rows


def mean_text(point: Point, metric: str) -> str:
    """Mean, and half of the interval over the seeds where there is one."""
    interval = point.interval(metric)
    half = "" if interval is None else f" ± {(interval[1] - interval[0]) / 2:.4f}"
    return f"{point.mean(metric):.4f}{half}"


def pareto_table(points: Sequence[Point], metric: str, costs: Sequence[str], mode: str, chosen: Point | None) -> Table:
    """The rows for a terminal; what is beaten is dim."""
    heading, rows = pareto_rows(points, metric, costs, mode, chosen)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, column in enumerate(heading):
        table.add_column(column, justify="right" if 0 < place < len(heading) - 1 else "left", overflow="fold")
    for row in rows:
        table.add_row(*row, style={"": "dim", MARKED: "bold"}.get(row[-1], ""))
    return table


def render_pareto_page(
    points: Sequence[Point],
    metric: str,
    costs: Sequence[str],
    mode: str,
    chosen: Point | None,
    *,
    figure: Figure,
    title: str,
    rule: str,
    notes: Sequence[str] = (),
) -> str:
    """The whole page; whatever comes from outside is escaped.

    Args:
        points: of the sweep.
        metric: that was drawn.
        costs: likewise.
        mode: "max" or "min" of the metric is better.
        chosen: the point that is marked.
        figure: as drawn.
        title: name of the sweep.
        rule: how the point was chosen, as a sentence.
        notes: further sentences, such as which jobs failed.
    """
    heading, rows = pareto_rows(points, metric, costs, mode, chosen)
    several = any(len(point.trials) > 1 for point in points)
    seeds = (
        "Bars are 95 % intervals of the mean over seeds." if several else "One run each: seeds are not in the figure."
    )
    body = [
        f"<h1>{escape(_headline(chosen, metric, costs[0]))}</h1>\n",
        f"<p class='faint'>{escape(title)}. {escape(rule)}</p>\n",
        *(f"<p class='warning'>{escape(note)}</p>\n" for note in notes),
        section(
            f"{metric} against what it costs",
            figure_block(to_svg(figure, "pareto"), f"{seeds} Faint points are beaten: another is as good and cheaper."),
        ),
        section("Every point", html_table(heading, rows)),
        section("How to make the chosen point again", _again(chosen)),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{''.join(body)}"
        "</main>\n</body>\n</html>\n"
    )


def _headline(chosen: Point | None, metric: str, cost: str) -> str:
    if chosen is None:
        return "Nothing was compressed"
    return f"{chosen.mean(cost):,.0f} {COSTS[cost]}, {metric} {mean_text(chosen, metric)}"


def _again(chosen: Point | None) -> str:
    if chosen is None:
        return "<p>There is none.</p>"
    commands = [shlex.join(trial.command) for trial in chosen.trials if trial.command]
    return "".join(f"<p><code>{escape(command)}</code></p>\n" for command in commands) or "<p>Not recorded.</p>"
