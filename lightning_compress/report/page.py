"""The report as one page: no network, no scripts, light and dark."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from lightning_compress.report.drawing import to_svg
from lightning_compress.report.figures import draw_fidelity, draw_history
from lightning_compress.report.history import History, read_history
from lightning_compress.report.layer_figures import draw_layers
from lightning_compress.report.report import Report
from lightning_compress.report.table import (
    FILE_LAYER_HEADING,
    FILE_STEP_HEADING,
    file_layer_rows,
    file_step_rows,
    layer_row,
    network_rows,
)

_STYLE = """
:root { color-scheme: light dark;
  --ink: #1f2933; --faint: #66717e; --line: #dfe3e8; --paper: #fdfdfc; --panel: #f4f5f6; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7eb; --faint: #98a2ae; --line: #343b44; --paper: #16191d; --panel: #1e2227; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 54rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .4rem; } h2 { font-size: 1.1rem; margin: 2.4rem 0 .6rem; }
p { margin: .4rem 0; } .faint { color: var(--faint); }
figure { margin: 1rem 0; } svg { display: block; width: 100%; height: auto; }
svg text { font-family: inherit !important; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem .3rem 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { font-weight: 600; color: var(--faint); }
.journal td { text-align: left; vertical-align: top; } .journal td:last-child { white-space: normal; }
.rollback, .stop { color: #c8453b; } .recovery { color: #2a9d78; }
details { margin: .6rem 0; } summary { cursor: pointer; }
pre { background: var(--panel); padding: .8rem 1rem; overflow-x: auto; font-size: .85rem; border-radius: .3rem; }
code { background: var(--panel); padding: .1rem .3rem; border-radius: .2rem; }
"""


def render_page(report: Report) -> str:
    """The whole of ``report.html``; whatever comes from outside is escaped."""
    history = read_history(report)
    sections = (
        _heading(report),
        _section("Before and after", _network_table(report)),
        _section("What happened when", _figure(to_svg(draw_history(history, report.monitor), "history"))),
        _section("Layer by layer", _figure(to_svg(draw_layers(report), "layers")) + _layer_table(report)),
        _file(report),
        _distillation(report, history),
        _section("What was done", _deeds(report)),
        _section("How to make this again", _provenance(report)),
    )
    title = escape(f"{report.recipe}, seed {report.seed}")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{''.join(sections)}</body>\n</html>\n"
    )


def summary_sentence(report: Report) -> str:
    """The run in one sentence."""
    before, after = report.before, report.after
    fewer = before.cost["nonzero_parameters"] / max(after.cost["nonzero_parameters"], 1)
    text = f"{fewer:.1f}x fewer parameters that are not zero"
    if before.cost["macs"] != after.cost["macs"]:
        text += f", {before.cost['macs'] / max(after.cost['macs'], 1):.1f}x fewer multiply-accumulates"
    if report.file is not None:
        text = f"A file {report.file.ratio:.1f}x smaller: {report.file.bytes:,} bytes, {text}"
    shared = [name for name in ("test_acc", report.monitor) if name in before.metrics and name in after.metrics]
    if shared:
        text += f"; {shared[0]} {before.metrics[shared[0]]:.4f} before, {after.metrics[shared[0]]:.4f} after"
    return f"{text}."


def _heading(report: Report) -> str:
    stages = " → ".join(f"{network.stage} ({network.epochs} epochs)" for network in report.networks)
    return (
        f"<h1>{escape(summary_sentence(report))}</h1>\n"
        f'<p class="faint">Recipe {escape(report.recipe)}, seed {report.seed}. {escape(stages)}. '
        "One run: the difference between two seeds is not in these figures.</p>\n"
    )


def _section(title: str, body: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>\n"


def _figure(svg: str) -> str:
    return f"<figure>{svg}</figure>"


def _table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in heading)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>'


def _network_table(report: Report) -> str:
    rows = network_rows(report.before, report.after)
    note = (
        '<p class="faint">MACs are multiply-accumulates for one sample, and bytes those of the tensors, both with the '
        "zeros counted: zeros make a network smaller only in a format that leaves them out.</p>"
    )
    return _table(("network", report.before.stage, report.after.stage, ""), rows) + note


def _layer_table(report: Report) -> str:
    after = {layer.name: layer for layer in report.after.layers}
    rows = [
        (layer.name, "x".join(map(str, layer.shape)), *layer_row(layer, after.get(layer.name))[1:])
        for layer in report.before.layers
    ]
    return _table(("layer", "shape", "weights", "kept", "share"), rows)


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
    body = _table(FILE_STEP_HEADING, file_step_rows(file)) + _table(FILE_LAYER_HEADING, file_layer_rows(file)) + note
    return _section(f"{file.name}: {file.ratio:.1f}x smaller", body + f"<p>Read back: {escape(read_back)}.</p>")


def _distillation(report: Report, history: History) -> str:
    """Nothing where nobody was taught."""
    if not history.fidelity:
        return ""
    worth = [entry["data"] for entry in report.journal if "without" in entry["data"]]
    rows = [(one["without"] or "nobody", f"{one['accuracy']:.4f}", f"{one['nll']:.4f}") for one in worth]
    table = _table(("teachers, validation data, without", "accuracy", "NLL"), rows) if rows else ""
    return _section("Student and teachers", _figure(to_svg(draw_fidelity(history), "fidelity")) + table)


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
