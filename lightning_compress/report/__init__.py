"""The report of a run: what was done to the network, and what is left of it; as data, page, figures and tables."""

from lightning_compress.report.answers import compare_answers, draw_confusion, predict
from lightning_compress.report.collect import (
    collect_environment,
    collect_layers,
    collect_network,
    quantized_bits,
    to_report_entries,
)
from lightning_compress.report.cost_curves import CostPoint, draw_cost_curves
from lightning_compress.report.drawing import to_png, to_svg
from lightning_compress.report.figures import draw_fidelity, draw_history
from lightning_compress.report.history import Event, History, read_history
from lightning_compress.report.layer_figures import draw_layers
from lightning_compress.report.page import draw_figures, render_page
from lightning_compress.report.publish import ModelFiles, send_report
from lightning_compress.report.report import (
    SCHEMA_VERSION,
    Answers,
    FileResult,
    Histogram,
    Layer,
    Network,
    Report,
    Rival,
    SizeStep,
    file_from_state,
    read_report,
    read_rival,
)
from lightning_compress.report.table import file_layer_table, file_step_table, layer_table, network_table
from lightning_compress.report.weight_figures import draw_masks, draw_sensitivity, draw_values

__all__ = [
    "SCHEMA_VERSION",
    "Answers",
    "CostPoint",
    "Event",
    "FileResult",
    "Histogram",
    "History",
    "Layer",
    "ModelFiles",
    "Network",
    "Report",
    "Rival",
    "SizeStep",
    "collect_environment",
    "collect_layers",
    "collect_network",
    "compare_answers",
    "draw_confusion",
    "draw_cost_curves",
    "draw_fidelity",
    "draw_figures",
    "draw_history",
    "draw_layers",
    "draw_masks",
    "draw_sensitivity",
    "draw_values",
    "file_from_state",
    "file_layer_table",
    "file_step_table",
    "layer_table",
    "network_table",
    "predict",
    "quantized_bits",
    "read_history",
    "read_report",
    "read_rival",
    "render_page",
    "send_report",
    "to_png",
    "to_report_entries",
    "to_svg",
]
