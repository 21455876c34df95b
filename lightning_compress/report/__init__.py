"""The report of a run: what was done to the network, and what is left of it; as data, page, figures and tables."""

from lightning_compress.report.collect import collect_environment, collect_layers, collect_network, to_report_entries
from lightning_compress.report.figures import draw_fidelity, draw_history, draw_layers, to_png, to_svg
from lightning_compress.report.history import Event, History, read_history
from lightning_compress.report.page import render_page
from lightning_compress.report.report import (
    SCHEMA_VERSION,
    FileResult,
    Layer,
    Network,
    Report,
    SizeStep,
    file_from_state,
)
from lightning_compress.report.table import file_layer_table, file_step_table, layer_table, network_table

__all__ = [
    "SCHEMA_VERSION",
    "Event",
    "FileResult",
    "History",
    "Layer",
    "Network",
    "Report",
    "SizeStep",
    "collect_environment",
    "collect_layers",
    "collect_network",
    "draw_fidelity",
    "draw_history",
    "draw_layers",
    "file_from_state",
    "file_layer_table",
    "file_step_table",
    "layer_table",
    "network_table",
    "read_history",
    "render_page",
    "to_png",
    "to_report_entries",
    "to_svg",
]
