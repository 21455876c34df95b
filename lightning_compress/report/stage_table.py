"""What each stage leaves, side by side, as a table for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from lightning_compress.report.report import Network

TOTALS = {
    "parameters": "parameters",
    "nonzero_parameters": "not zero",
    "macs": "MACs, dense",
    "dense_bytes": "bytes, dense",
}


def stage_table(networks: Sequence[Network], file_bytes: int | None = None) -> Table:
    """A column for each stage; rows are the weight tensors (entries that are not zero, and the shape), then totals.

    Args:
        networks: what each stage left, in order.
        file_bytes: size of the last one's file; None where there is none.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    for network in networks:
        table.add_column(network.stage, justify="right", no_wrap=True)
    for name in dict.fromkeys(layer.name for network in networks for layer in network.layers):
        found = [{layer.name: layer for layer in network.layers}.get(name) for network in networks]
        table.add_row(name, *(_cell(layer.kept, layer.shape) if layer is not None else "" for layer in found))
    table.add_section()
    for field, label in TOTALS.items():
        values = [network.cost[field] for network in networks]
        table.add_row(label, *(_against(value, values[0]) for value in values))
    if file_bytes is not None:
        first = networks[0].cost["parameters"] * 4
        table.add_row(
            "bytes of the file", f"{first:,} (fp32)", *[""] * (len(networks) - 2), _against(file_bytes, first)
        )
    return table


def _cell(kept: int, shape: Sequence[int]) -> str:
    return f"{kept:,} of {'x'.join(map(str, shape))}"


def _against(value: int, first: int) -> str:
    return f"{value:,}" if value == first else f"{value:,}  {first / max(value, 1):.1f}x"
