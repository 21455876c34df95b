"""The report as one page: no network, no scripts, light and dark."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from matplotlib.figure import Figure

from lightning_compress.report.answers import draw_confusion
from lightning_compress.report.drawing import to_svg
from lightning_compress.report.figures import draw_fidelity, draw_history
from lightning_compress.report.history import read_history
from lightning_compress.report.html import STYLE, figure_block, html_table, section
from lightning_compress.report.layer_figures import draw_layers, pair_layers
from lightning_compress.report.report import FINISHED, Layer, Report
from lightning_compress.report.table import (
    FILE_LAYER_HEADING,
    FILE_STEP_HEADING,
    file_layer_rows,
    file_step_rows,
    full_network_rows,
    layer_row,
    network_heading,
)
from lightning_compress.report.weight_figures import draw_sensitivity, draw_values

VALUES_CAPTION = (
    "Weights that are not zero, each histogram as high as its highest bin. Line: before; filled: after; where few "
    "values are shared, each of them is a line."
)


def draw_figures(report: Report) -> dict[str, Figure]:
    """Every figure that the report has something to show in, by name, in the order of the page."""
    history = read_history(report)
    figures = {"history": draw_history(history, report.monitor)} if history.end else {}
    figures["layers"] = draw_layers(report)
    if any(layer.values is not None for layer in report.after.layers):
        figures["values"] = draw_values(report)
    if report.sensitivity:
        figures["sensitivity"] = draw_sensitivity(report.sensitivity)
    if report.answers is not None and report.answers.after:
        figures["confusion"] = draw_confusion(report.answers)
    if history.fidelity:
        figures["fidelity"] = draw_fidelity(history)
    return figures


def render_page(report: Report, figures: Mapping[str, Figure] | None = None) -> str:
    """The whole of ``report.html``; whatever comes from outside is escaped.

    Args:
        report: of a run.
        figures: what :func:`draw_figures` has drawn of it, if it has.
    """
    drawn = {name: to_svg(figure, name) for name, figure in (figures or draw_figures(report)).items()}
    sections = (
        _heading(report),
        section("Before and after", _network_table(report)),
        _figure_section("What happened when", drawn, "history"),
        _figure_section("Layer by layer", drawn, "layers", after=_layer_details(report)),
        _figure_section("How the weights spread", drawn, "values", VALUES_CAPTION),
        _figure_section("What zeros cost where, without training", drawn, "sensitivity"),
        _file(report),
        _answers(report, drawn),
        _figure_section("Student and teachers", drawn, "fidelity", after=_teachers(report)),
        section("What was done", _deeds(report)),
        _unknown(report),
        section("How to make this again", _provenance(report)),
    )
    title = escape(report.recipe if report.seed is None else f"{report.recipe}, seed {report.seed}")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"{''.join(sections)}</main>\n</body>\n</html>\n"
    )


def summary_sentence(report: Report) -> str:
    """The run in one sentence."""
    before, after = report.before, report.after
    fewer = before.cost["nonzero_parameters"] / max(after.cost["nonzero_parameters"], 1)
    text = f"{fewer:.1f}x fewer parameters that are not zero"
    if fewer_macs(report) > 1:
        text += f", {fewer_macs(report):.1f}x fewer multiply-accumulates"
    if report.file is not None:
        text = f"A file {report.file.ratio:.1f}x smaller, {text}"
    metric = headline_metric(report)
    if metric is not None:
        text += f"; {metric} {before.metrics[metric]:.4f} before, {after.metrics[metric]:.4f} after"
    return f"{text}."


def fewer_macs(report: Report) -> float:
    """By what factor the multiply-accumulates have become fewer; 1 where they have not, or it is not known."""
    before, after = report.before.cost.get("macs", 0), report.after.cost.get("macs", 0)
    return before / after if before > after > 0 else 1.0


def headline_metric(report: Report) -> str | None:
    """What both networks are judged by: the test's relative of the monitored metric, else that itself, else any."""
    shared = sorted(set(report.before.metrics) & set(report.after.metrics))
    wanted = (report.monitor.replace("val", "test", 1), report.monitor)
    tests = [name for name in shared if name.startswith("test")]
    return next((name for name in (*wanted, *tests, *shared) if name in shared), None)


def _heading(report: Report) -> str:
    stages = " → ".join(f"{one.stage} ({one.epochs} epochs)" if one.epochs else one.stage for one in report.networks)
    broken = "" if report.status == FINISHED else f'<p class="warning">{escape(report.status)}</p>\n'
    seed = "seed not set" if report.seed is None else f"seed {report.seed}"
    return (
        f"<h1>{escape(summary_sentence(report))}</h1>\n"
        f'<p class="faint">{escape(report.recipe)}, {seed}. {escape(stages)}. '
        f"One run: the difference between two seeds is not in these figures.</p>\n{broken}{_tiles(report)}"
    )


def _tiles(report: Report) -> str:
    """The few figures that a reader looks for first."""
    before, after = report.before, report.after
    tiles = []
    metric = headline_metric(report)
    if metric is not None:
        change = after.metrics[metric] - before.metrics[metric]
        tiles.append((f"{after.metrics[metric]:.4f}", f"{metric}, {change:+.4f}"))
    if report.file is not None:
        tiles.append((f"{report.file.bytes:,}", f"bytes on the disk, {report.file.ratio:.1f}x fewer than in fp32"))
    kept = after.cost["nonzero_parameters"]
    tiles.append((f"{kept:,}", f"parameters not zero, of {before.cost['parameters']:,}"))
    if "macs" in after.cost:
        macs = f"{fewer_macs(report):.1f}x fewer" if fewer_macs(report) > 1 else "as many as before"
        tiles.append((f"{after.cost['macs']:,}", f"MACs for one sample, dense, {macs}"))
    if report.answers is not None:
        tiles.append((f"{report.answers.agreement:.1%}", "same answers before and after, validation"))
    inner = "".join(f'<div class="tile"><b>{escape(a)}</b><span>{escape(b)}</span></div>' for a, b in tiles)
    return f'<div class="tiles">{inner}</div>\n'


def _network_table(report: Report) -> str:
    rows = full_network_rows(report)
    note = (
        '<p class="faint">MACs are multiply-accumulates for one sample, and bytes those of the tensors, both with the '
        "zeros counted: zeros make a network smaller only in a format that leaves them out.</p>"
    )
    if report.rival is None:
        note += '<p class="faint">No honest rival (a small dense network of equal bytes, from scratch) was trained.</p>'
    return html_table(network_heading(report), rows) + note


def _figure_section(title: str, drawn: Mapping[str, str], name: str, caption: str = "", after: str = "") -> str:
    """Nothing where there is no such figure."""
    return section(title, figure_block(drawn[name], caption) + after) if name in drawn else ""


def _layer_details(report: Report) -> str:
    return f"<details><summary>As a table</summary>{_layer_table(report)}</details>"


def _answers(report: Report, drawn: Mapping[str, str]) -> str:
    """Nothing where the answers were not compared."""
    answers = report.answers
    if answers is None:
        return ""
    text = (
        f"<p>On {answers.samples:,} validation samples both give the same answer to {answers.agreement:.1%}; "
        f"{answers.lost:,} answers that were right are wrong now, and {answers.gained:,} that were wrong are right.</p>"
    )
    figure = figure_block(drawn["confusion"]) if "confusion" in drawn else ""
    return section("Which answers changed", text + figure)


def _unknown(report: Report) -> str:
    """Nothing where nothing is missing."""
    lines = "".join(f"<li>{escape(line)}</li>" for line in report.unknown)
    return section("What this report cannot say", f"<ul>{lines}</ul>") if lines else ""


def _layer_table(report: Report) -> str:
    pairs = pair_layers(report.before.layers, report.after.layers)
    rows = [_layer_cells(old, new) for old, new in pairs]
    return html_table(("layer", "shape", "weights", "kept", "share"), rows)


def _layer_cells(old: Layer | None, new: Layer | None) -> Sequence[str]:
    if old is not None:
        return old.name, "x".join(map(str, old.shape)), *layer_row(old, new)[1:]
    return () if new is None else (new.name, "x".join(map(str, new.shape)), "new", f"{new.kept:,}", "")


def _file(report: Report) -> str:
    """Nothing where no file was written."""
    file = report.file
    if file is None:
        return ""
    note = (
        '<p class="faint">A file is counted by what it takes on the disk. The steps before it are counted as in Deep '
        "Compression: fields of one width for weights and for the gaps between them. Bits are those of a kept weight, "
        "before and after entropy coding; each layer's bytes are those of the layer coded by itself.</p>"
    )
    read_back = ", ".join(f"{name} {value:.4f}" for name, value in sorted(file.metrics.items()))
    body = (
        html_table(FILE_STEP_HEADING, file_step_rows(file))
        + html_table(FILE_LAYER_HEADING, file_layer_rows(file))
        + note
    )
    return section(f"{file.name}: {file.ratio:.1f}x smaller", body + f"<p>Read back: {escape(read_back)}.</p>")


def _teachers(report: Report) -> str:
    """What each teacher is worth, where there were several."""
    worth = [entry["data"] for entry in report.journal if "without" in entry["data"]]
    rows = [(one["without"] or "nobody", f"{one['accuracy']:.4f}", f"{one['nll']:.4f}") for one in worth]
    return html_table(("teachers, validation data, without", "accuracy", "NLL"), rows) if rows else ""


def _deeds(report: Report) -> str:
    asked = "".join(f"<p>{escape(str(end['text']))}.</p>\n" for end in report.asked_and_reached)
    plan = "".join(f"<li>{escape(line)}</li>" for line in report.plan)
    number = len(report.plan)
    summary = f"<summary>Plan: {number} edits of shape</summary>"
    edits = f"<details{' open' * (number <= 12)}>{summary}<ol>{plan}</ol></details>\n"
    told = [entry for entry in report.journal if entry["kind"] != "measurement"]
    rows = "".join(_journal_row(entry) for entry in told)
    journal = f'<div class="scroll"><table class="journal"><tbody>{rows}</tbody></table></div>'
    return (
        f"{asked}{edits * (number > 0)}<details open><summary>Journal: {len(told)} entries, and a measurement after "
        f"each epoch</summary>{journal}</details>"
    )


def _journal_row(entry: Mapping[str, Any]) -> str:
    time = "" if entry["epoch"] is None else f"epoch {entry['epoch']:.4g}"
    kind = escape(str(entry["kind"]))
    return (
        f'<tr><td class="faint">{time}</td><td class="{kind}">{kind}</td><td>{escape(str(entry["text"]))}</td></tr>\n'
    )


def _provenance(report: Report) -> str:
    environment = ", ".join(f"{name} {value}" for name, value in report.environment.items())
    config = escape(json.dumps(report.config, indent=2))
    return (
        f"<p><code>{escape(report.command)}</code></p>\n<p class='faint'>{escape(environment)}</p>\n"
        f"<details><summary>Resolved configuration</summary><pre>{config}</pre></details>"
    )
