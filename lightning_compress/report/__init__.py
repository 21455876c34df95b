"""The report of a run: what was done to the network, and what is left of it; as data, page, figures and tables."""

from lightning_compress.report.collect import collect_environment, collect_layers, collect_network, to_report_entries
from lightning_compress.report.figures import draw_history, draw_layers, to_png, to_svg
from lightning_compress.report.history import Event, History, read_history
from lightning_compress.report.page import render_page
from lightning_compress.report.report import SCHEMA_VERSION, Layer, Network, Report
from lightning_compress.report.table import layer_table, network_table

__all__ = [
    "SCHEMA_VERSION",
    "Event",
    "History",
    "Layer",
    "Network",
    "Report",
    "collect_environment",
    "collect_layers",
    "collect_network",
    "draw_history",
    "draw_layers",
    "layer_table",
    "network_table",
    "read_history",
    "render_page",
    "to_png",
    "to_report_entries",
    "to_svg",
]
