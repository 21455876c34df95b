"""What differs between two runs: configuration, metrics, costs, bytes and layers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lightning_compress.report.layer_figures import file_bytes, pair_layers
from lightning_compress.report.report import Layer, Report
from lightning_compress.report.table import plain_table

ABSENT = "not there"
Row = tuple[str, str, str, str]
"""A quantity, its value in either run, and how they compare."""


def compare_reports(one: Report, other: Report, names: tuple[str, str] = ("first", "second")) -> RenderableType:
    """Tables for a terminal: what was configured otherwise, the networks that are left, and their layers.

    Args:
        one: report of a run.
        other: report of another; of another recipe or network too.
        names: what to call them.
    """
    parts: list[RenderableType] = []
    configuration = config_rows(one, other)
    if configuration:
        table = _titled("configured otherwise", plain_table(("", *names), configuration))
        for column in table.columns[1:]:
            column.no_wrap, column.overflow = False, "fold"
        parts.append(table)
    else:
        parts.append(Text("configured alike", style="bold"))
    parts.append(
        _titled("what is left", plain_table(("", *names, "second against first"), network_difference(one, other)))
    )
    layers = layer_difference(one, other)
    if layers:
        heading = ("layer", f"{names[0]}: shape", "kept", "bytes", f"{names[1]}: shape", "kept", "bytes")
        parts.append(_titled("layers that differ", plain_table(heading, layers)))
    else:
        parts.append(Text("layers alike in shape, zeros and bytes", style="bold"))
    parts += [
        Text(f"{name}: {report.status}")
        for name, report in zip(names, (one, other), strict=True)
        if report.status != "finished"
    ]
    return Group(*parts)


def config_rows(one: Report, other: Report) -> list[tuple[str, str, str]]:
    """Recipe, and each value of configuration and environment that differs; a branch that one lacks is one row."""
    first, second = ({"recipe": r.recipe, **r.config, "environment": dict(r.environment)} for r in (one, other))
    return list(_differences(first, second, ""))


def _differences(one: Any, other: Any, key: str) -> Iterator[tuple[str, str, str]]:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for name in dict.fromkeys([*one, *other]):
            yield from _differences(one.get(name, ABSENT), other.get(name, ABSENT), f"{key}.{name}".strip("."))
    elif one != other:
        yield key, _text(one), _text(other)


def network_difference(one: Report, other: Report) -> list[Row]:
    """Metrics, costs and the file of the networks that the runs left."""
    rows: list[Row] = []
    for name in dict.fromkeys([*one.after.metrics, *other.after.metrics]):
        a, b = one.after.metrics.get(name), other.after.metrics.get(name)
        change = "" if a is None or b is None else f"{b - a:+.4f}"
        rows.append((name, *("" if v is None else f"{v:.4f}" for v in (a, b)), change))  # type: ignore[arg-type]
    costs = one.after.cost, other.after.cost
    rows += [
        _count_row(n.replace("_", " "), costs[0].get(n), costs[1].get(n)) for n in dict.fromkeys([*costs[0], *costs[1]])
    ]
    sizes = [None if report.file is None else report.file.bytes for report in (one, other)]
    if any(size is not None for size in sizes):
        rows.append(_count_row("bytes, file", *sizes))
    return rows


def layer_difference(one: Report, other: Report) -> list[tuple[str, ...]]:
    """Layers whose shape, kept weights or bytes differ; bytes are those in the file where there is one."""
    coded = file_bytes(one), file_bytes(other)
    rows: list[tuple[str, ...]] = []
    for pair in pair_layers(one.after.layers, other.after.layers):
        cells = [_layer_cells(layer, sizes) for layer, sizes in zip(pair, coded, strict=True)]
        if cells[0] != cells[1]:
            name = next(layer.name for layer in pair if layer is not None)
            rows.append((name, *cells[0], *cells[1]))
    return rows


def _layer_cells(layer: Layer | None, coded: Mapping[str, int]) -> tuple[str, str, str]:
    if layer is None:
        return "none", "", ""
    size = coded.get(layer.parameter, layer.bytes)
    return "x".join(map(str, layer.shape)), f"{layer.kept:,}", f"{size:,}"


def _count_row(name: str, one: int | None, other: int | None) -> Row:
    cells = ["" if value is None else f"{value:,}" for value in (one, other)]
    if one is None or other is None or one == other or not min(one, other):
        return name, cells[0], cells[1], ""
    change = f"{one / other:.2f}x fewer" if other < one else f"{other / one:.2f}x more"
    return name, cells[0], cells[1], change


def _text(value: Any) -> str:
    """A value in a cell; of a branch, what it makes.

    >>> _text({"_target_": "lightning_compress.WeightPruning", "sparsity": 0.5}), _text([1])
    ('WeightPruning', '[1]')
    """
    if isinstance(value, Mapping) and "_target_" in value:
        return str(value["_target_"]).rpartition(".")[2]
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _titled(title: str, table: Table) -> Table:
    table.title, table.title_justify, table.title_style = title, "left", "bold"
    return table
