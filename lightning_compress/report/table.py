"""The report as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.table import Table

from lightning_compress.report.report import FileResult, Layer, Network, Report


def layer_table(report: Report) -> Table:
    """Each weight tensor before and after: entries and what is kept of them.

    A layer that is gone has no entries after; shapes are shown where they have changed.
    """
    after = {layer.name: layer for layer in report.after.layers}
    rows = (layer_row(layer, after.get(layer.name)) for layer in report.before.layers)
    return plain_table(("layer", "weights", "kept", "share"), rows)


def layer_row(before: Layer, after: Layer | None) -> tuple[str, str, str, str]:
    """Name, entries before, entries kept (with the shape, where it changed), share kept."""
    if after is None:
        return before.name, f"{before.weights:,}", "gone", f"{0:.1%}"
    shape = "" if after.shape == before.shape else f"  ({'x'.join(map(str, after.shape))})"
    return before.name, f"{before.weights:,}", f"{after.kept:,}{shape}", f"{after.kept / before.weights:.1%}"


def network_table(report: Report) -> Table:
    """The whole network before and after: size, arithmetic and every metric that both have."""
    return plain_table(network_heading(report), full_network_rows(report))


def network_heading(report: Report) -> tuple[str, ...]:
    """Over :func:`full_network_rows`."""
    rival = () if report.rival is None else (f"rival: {report.rival.name}",)
    return ("network", report.before.stage, report.after.stage, "", *rival)


def full_network_rows(report: Report) -> list[tuple[str, ...]]:
    """:func:`network_rows`, the file's bytes where there is one, and a column for the honest rival, if there is one."""
    rows: list[tuple[str, ...]] = [*network_rows(report.before, report.after)]
    if report.file is not None:
        dense = report.before.cost["parameters"] * 4
        rows.append(("bytes, file", f"{dense:,} (fp32)", f"{report.file.bytes:,}", f"{report.file.ratio:.1f}x fewer"))
    if report.rival is None:
        return rows
    theirs = {row[0]: row[2] for row in network_rows(report.rival.network, report.rival.network)}
    if report.rival.file_bytes is not None:
        theirs["bytes, file"] = f"{report.rival.file_bytes:,}"
    return [(*row, theirs.get(row[0], "")) for row in rows]


def network_rows(before: Network, after: Network) -> list[tuple[str, str, str, str]]:
    """Quantity, value before, value after, and how they compare."""
    rows = [
        _ratio_row("parameters", before.cost["parameters"], after.cost["parameters"]),
        _ratio_row("not zero", before.cost["nonzero_parameters"], after.cost["nonzero_parameters"]),
        ("sparsity", f"{before.sparsity:.1%}", f"{after.sparsity:.1%}", ""),
        _ratio_row("bytes, dense", before.cost["dense_bytes"], after.cost["dense_bytes"]),
    ]
    if "macs" in before.cost and "macs" in after.cost:
        rows.insert(3, _ratio_row("MACs, dense", before.cost["macs"], after.cost["macs"]))
    for name in sorted(set(before.metrics) & set(after.metrics)):
        old, new = before.metrics[name], after.metrics[name]
        rows.append((name, f"{old:.4f}", f"{new:.4f}", f"{new - old:+.4f}"))
    return rows


def file_layer_table(file: FileResult) -> Table:
    """Each parameter in the file: what is kept, bits of a kept weight and of its place after coding, bytes."""
    return plain_table(FILE_LAYER_HEADING, file_layer_rows(file))


FILE_LAYER_HEADING = ("layer", "kept", "share", "weight bits", "index bits", "bytes")


def file_layer_rows(file: FileResult) -> list[tuple[str, ...]]:
    """Rows under :data:`FILE_LAYER_HEADING`; bits before and after entropy coding, as Han et al. have them."""
    return [
        (
            str(layer["name"]),
            f"{layer['kept']:,}",
            f"{layer['kept'] / max(layer['weights'], 1):.1%}",
            f"{layer['value_bits']} → {layer['coded_value_bits']:.1f}",
            f"{layer['index_bits']} → {layer['coded_index_bits']:.1f}" if layer["index_bits"] else "",
            f"{layer['coded_bytes']:,}",
        )
        for layer in file.layers
    ]


def file_step_table(file: FileResult) -> Table:
    """The size after each step, and its ratio to the first."""
    return plain_table(FILE_STEP_HEADING, file_step_rows(file))


FILE_STEP_HEADING = ("step", "bytes", "ratio", "")


def file_step_rows(file: FileResult) -> list[tuple[str, ...]]:
    """Rows under :data:`FILE_STEP_HEADING`."""
    first = file.steps[0].bytes
    return [
        (step.step, f"{step.bytes:,}", f"{first / step.bytes:.1f}x", "file" if step.real else "counted")
        for step in file.steps
    ]


def plain_table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table without lines; the first column to the left, the others to the right."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, column in enumerate(heading):
        table.add_column(column, justify="right" if place else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def _ratio_row(name: str, before: int, after: int) -> tuple[str, str, str, str]:
    ratio = before / after if after else float("inf")
    return name, f"{before:,}", f"{after:,}", "" if before == after else f"{ratio:.1f}x fewer"
