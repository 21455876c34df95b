"""``lightning-compress pareto``: a sweep or a search as a table, a figure and a page."""

from __future__ import annotations

import os
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from lightning_compress.app.ledger import LEDGER, Ledger
from lightning_compress.app.run_folder import relative, write_text
from lightning_compress.errors import CompressionError, did_you_mean
from lightning_compress.report import Report, to_png, to_svg
from lightning_compress.report.pareto import COSTS, Point, Trial, check_cost, choose, points_of
from lightning_compress.report.pareto_figure import draw_pareto
from lightning_compress.report.pareto_page import pareto_table, render_pareto_page
from lightning_compress.training.atomic_checkpoint import write_atomically

DRAWN = ("file_bytes", "dense_bytes", "macs", "latency")
"""Costs that are drawn where they are known; the first bytes that are known stand for both."""


@dataclass(frozen=True)
class Found:
    """A finished run below a folder.

    Attributes:
        trial: its figures.
        folder: where it lies.
        monitor: the metric that it followed.
        mode: "max" or "min" of it is better.
    """

    trial: Trial
    folder: Path
    monitor: str
    mode: str


def pareto(arguments: Sequence[str]) -> None:
    """The command.

    Raises:
        CompressionError: there is nothing to show, or what was asked for is not known of every run.
    """
    parser = ArgumentParser(prog="lightning-compress pareto", description="A sweep or a search: table, figure, page.")
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="of a sweep, a search, or runs")
    parser.add_argument("--rival", action="append", default=[], metavar="FOLDER", help="runs of small dense networks")
    parser.add_argument("--metric", help="what is drawn; test_acc where it is known, else the monitored metric")
    parser.add_argument("--cost", help=f"by which a point is chosen: {', '.join(COSTS)}")
    parser.add_argument("--max-drop", type=float, default=0.005, help="of the monitored metric, for the chosen point")
    parser.add_argument("--latency", action="store_true", help="measure it now, side by side (a quiet machine!)")
    parser.add_argument("--output", metavar="FOLDER", help="for pareto.html, .svg and .png; the first folder otherwise")
    parser.add_argument("--wandb", metavar="PROJECT/RUN", help="log table, figure and page to this run, offline")
    asked = parser.parse_args(list(arguments))
    show(
        [Path(folder) for folder in asked.folders],
        rivals=[Path(folder) for folder in asked.rival],
        metric=asked.metric,
        cost=asked.cost,
        max_drop=asked.max_drop,
        latency=asked.latency,
        output=None if asked.output is None else Path(asked.output),
        wandb_run=asked.wandb,
    )


def show(
    folders: Sequence[Path],
    *,
    rivals: Sequence[Path] = (),
    metric: str | None = None,
    cost: str | None = None,
    max_drop: float = 0.005,
    latency: bool = False,
    output: Path | None = None,
    wandb_run: str | None = None,
) -> None:
    """Print the table and write ``pareto.html``, ``pareto.svg`` and ``pareto.png``.

    Args:
        folders: with the runs.
        rivals: with runs of small dense networks; runs of a recipe without callbacks count as such by themselves.
        metric: what is drawn; None: ``test_acc`` where every run has it, else the monitored one.
        cost: by which a point is chosen; None: bytes of the file where every run has one, else bytes.
        max_drop: of the monitored metric, on validation, for the chosen point.
        latency: measure it.
        output: where the files go; None: into the first folder.
        wandb_run: ``PROJECT/RUN`` to log to.

    Raises:
        CompressionError: no finished run, or something is not known of every run.
    """
    found, others = list(_find(folders)), list(_find(rivals))
    if not found:
        places = ", ".join(repr(str(folder)) for folder in folders)
        raise CompressionError(f"No finished run below {places}. Give the folder of a sweep: outputs/sweeps/NAME.")
    if latency:
        found, others = _with_latency(found, others)
    points = points_of((one.trial for one in found), rivals=(one.trial for one in others))
    monitor, mode = found[0].monitor, found[0].mode
    metric = _metric(points, metric, monitor)
    costs = [name for name in DRAWN if all(point.has(name) for point in points)]
    if "file_bytes" in costs:
        costs.remove("dense_bytes")
    first = check_cost(points, cost or costs[0])
    costs = [first, *(name for name in costs if name != first)]
    chosen = choose([point for point in points if not point.rival], monitor, first, mode, max_drop)
    rule = f"Chosen: the least {COSTS[first]} among points that lose at most {max_drop:g} of {monitor}, on validation."
    if chosen is not None and chosen.drop(monitor, mode) > max_drop:
        rule = f"Chosen: the point that loses least of {monitor}, on validation; none loses at most {max_drop:g}."
    figure = draw_pareto(points, metric, costs, mode, chosen)
    notes = list(_notes(folders))
    page = render_pareto_page(
        points, metric, costs, mode, chosen, figure=figure, title=folders[0].resolve().name, rule=rule, notes=notes
    )
    place = output or folders[0]
    place.mkdir(parents=True, exist_ok=True)
    write_text(place / "pareto.html", page)
    picture = to_png(figure)
    write_atomically(place / "pareto.png", lambda file: file.write(picture))
    write_text(place / "pareto.svg", _standalone(to_svg(figure, "pareto")))
    console = Console()
    console.print(pareto_table(points, metric, costs, mode, chosen))
    for line in ("", rule, *notes, f"page     {relative(place / 'pareto.html')}"):
        console.print(Text(line), soft_wrap=True)
    if wandb_run is not None:
        _log(wandb_run, points, metric, costs, place)


def _metric(points: Sequence[Point], asked: str | None, monitor: str) -> str:
    known = [name for name in points[0].trials[0].after if all(point.has(name) for point in points)]
    if asked is not None and asked not in known:
        raise CompressionError(f"No metric {asked!r} in every run. {did_you_mean(asked, known)}")
    return asked or ("test_acc" if "test_acc" in known else monitor)


def _find(folders: Sequence[Path]) -> Iterator[Found]:
    """What the ledgers below the folders say; and the reports of runs that are in no ledger."""
    for folder in folders:
        recorded = {path.parent for path in folder.rglob(LEDGER)}
        for place in sorted(recorded):
            yield from (
                _from_line(job.line, place / job.name) for job in Ledger(place).jobs() if job.status == "finished"
            )
        for path in sorted(folder.rglob("report.json")):
            if not recorded & set(path.parents):
                yield _from_report(Report.from_json(path.read_text()), path.parent)


def _from_line(line: Any, folder: Path) -> Found:
    file = {} if line["file"] is None else {"file_bytes": line["file"]["bytes"]}
    command = ("lightning-compress", *line["command"]) if line.get("command") else ()
    trial = Trial(_without_place(line["config"], folder), line["before"], {**line["after"], **file}, command)
    return Found(trial, folder, line["monitor"], line["mode"])


def _without_place(value: Any, folder: Path) -> Any:
    """The configuration as it would be in another folder: a teacher of the run itself is no difference."""
    if isinstance(value, dict):
        return {key: _without_place(inner, folder) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_place(inner, folder) for inner in value]
    before, place, after = value.rpartition(f"/{folder.name}/") if isinstance(value, str) else ("", "", "")
    return f"RUN/{after}" if before and place else value


def _from_report(report: Report, folder: Path) -> Found:
    from lightning_compress.app.sweep import entry_of

    return _from_line(entry_of(report), folder)


def _notes(folders: Sequence[Path]) -> Iterator[str]:
    """What is not in the figure."""
    for folder in folders:
        for path in folder.rglob(LEDGER):
            jobs = Ledger(path.parent).jobs()
            for status, words in (("failed", "failed or were given up"), ("started", "were not finished")):
                number = sum(job.status == status for job in jobs)
                if number:
                    yield f"{number} of {len(jobs)} jobs {words} and are not shown; see {os.path.relpath(path)}."


def _with_latency(found: Sequence[Found], others: Sequence[Found]) -> tuple[list[Found], list[Found]]:
    from lightning_compress.app.sweep_latency import measure_runs

    everything = [*found, *others]
    values = measure_runs([(one.folder, one.trial.config) for one in everything])
    timed = [
        replace(one, trial=replace(one.trial, after={**one.trial.after, "latency": value}))
        for one, value in zip(everything, values, strict=True)
    ]
    return timed[: len(found)], timed[len(found) :]


def _standalone(svg: str) -> str:
    """A file of its own needs a colour for its ink, and the namespaces that a page does without."""
    return svg.replace("currentColor", "#1f2933")


def _log(run: str, points: Sequence[Point], metric: str, costs: Sequence[str], place: Path) -> None:
    """Table, picture and page, to a W&B run that there is or will be; offline, as everything here."""
    import wandb
    from PIL import Image

    project, _, identity = run.rpartition("/")
    session = wandb.init(
        project=project or "lightning-compress",
        id=identity,
        resume="allow",
        mode="offline",
        dir=str(place),
        settings=wandb.Settings(silent=True, console="off"),
    )
    rows = [[p.label, len(p.trials), p.mean(metric), *(p.mean(cost) for cost in costs), p.rival] for p in points]
    table = wandb.Table(columns=["point", "runs", metric, *costs, "rival"], data=rows)
    picture = wandb.Image(Image.open(place / "pareto.png"))
    session.log(
        {"pareto/points": table, "pareto/figure": picture, "pareto/page": wandb.Html(str(place / "pareto.html"))}
    )
    session.finish()
