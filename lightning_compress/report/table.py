"""The report as tables for a terminal."""

from __future__ import annotations

from rich.table import Table

from lightning_compress.report.report import Layer, Network, Report


def layer_table(report: Report) -> Table:
    """Each weight tensor before and after: entries and what is kept of them.

    A layer that is gone has no entries after; shapes are shown where they have changed.
    """
    after = {layer.name: layer for layer in report.after.layers}
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("layer", no_wrap=True)
    for heading in ("weights", "kept", "share"):
        table.add_column(heading, justify="right", no_wrap=True)
    for layer in report.before.layers:
        table.add_row(*layer_row(layer, after.get(layer.name)))
    return table


def layer_row(before: Layer, after: Layer | None) -> tuple[str, str, str, str]:
    """Name, entries before, entries kept (with the shape, where it changed), share kept."""
    if after is None:
        return before.name, f"{before.weights:,}", "gone", f"{0:.1%}"
    shape = "" if after.shape == before.shape else f"  ({'x'.join(map(str, after.shape))})"
    return before.name, f"{before.weights:,}", f"{after.kept:,}{shape}", f"{after.kept / before.weights:.1%}"


def network_table(report: Report) -> Table:
    """The whole network before and after: size, arithmetic and every metric that both have."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("network", no_wrap=True)
    for heading in (report.before.stage, report.after.stage, ""):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in network_rows(report.before, report.after):
        table.add_row(*row)
    return table


def network_rows(before: Network, after: Network) -> list[tuple[str, str, str, str]]:
    """Quantity, value before, value after, and how they compare."""
    rows = [
        _ratio_row("parameters", before.cost["parameters"], after.cost["parameters"]),
        _ratio_row("not zero", before.cost["nonzero_parameters"], after.cost["nonzero_parameters"]),
        ("sparsity", f"{before.sparsity:.1%}", f"{after.sparsity:.1%}", ""),
        _ratio_row("MACs, dense", before.cost["macs"], after.cost["macs"]),
        _ratio_row("bytes, dense", before.cost["dense_bytes"], after.cost["dense_bytes"]),
    ]
    for name in sorted(set(before.metrics) & set(after.metrics)):
        old, new = before.metrics[name], after.metrics[name]
        rows.append((name, f"{old:.4f}", f"{new:.4f}", f"{new - old:+.4f}"))
    return rows


def _ratio_row(name: str, before: int, after: int) -> tuple[str, str, str, str]:
    ratio = before / after if after else float("inf")
    return name, f"{before:,}", f"{after:,}", "" if before == after else f"{ratio:.1f}x fewer"
