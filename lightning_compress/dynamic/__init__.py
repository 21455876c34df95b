"""Dynamic computation: easy samples leave early, one network at many widths and depths."""

from lightning_compress.dynamic.calibration import Calibration, calibrate_exits, collect, exit_latencies
from lightning_compress.dynamic.depth import export_depth, prune_depth_, set_depth
from lightning_compress.dynamic.early_exit import EarlyExits
from lightning_compress.dynamic.exit_files import load_exits
from lightning_compress.dynamic.guarantee import Guarantee, drop_p_value, guaranteed_thresholds
from lightning_compress.dynamic.inference import ExitInference, Predictions
from lightning_compress.dynamic.placement import attach_exits, hang_on, place_exits
from lightning_compress.dynamic.routed import routed
from lightning_compress.dynamic.slimmable import Slimmable, export_width, make_slimmable, set_width
from lightning_compress.dynamic.slimmable_widths import SlimmableWidths, load_widths
from lightning_compress.dynamic.stochastic_depth import StochasticDepth
from lightning_compress.dynamic.thresholds import ExitRecord, Outcome, search_for_cost, search_for_drop

__all__ = [
    "Calibration",
    "EarlyExits",
    "ExitInference",
    "ExitRecord",
    "Guarantee",
    "Outcome",
    "Predictions",
    "Slimmable",
    "SlimmableWidths",
    "StochasticDepth",
    "attach_exits",
    "calibrate_exits",
    "collect",
    "drop_p_value",
    "exit_latencies",
    "export_depth",
    "export_width",
    "guaranteed_thresholds",
    "hang_on",
    "load_exits",
    "load_widths",
    "make_slimmable",
    "place_exits",
    "prune_depth_",
    "routed",
    "search_for_cost",
    "search_for_drop",
    "set_depth",
    "set_width",
]
