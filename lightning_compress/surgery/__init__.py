"""Surgery on modules, in plain torch: what hangs together, whether a cut is right, BatchNorm, input statistics."""

from lightning_compress.surgery.allocation import Option, allocate
from lightning_compress.surgery.batch_norm import fold_batchnorm_, recalibrate_batchnorm_, recalibrate_if_better_
from lightning_compress.surgery.dependencies import find_groups
from lightning_compress.surgery.groups import Counted, Coupled, Group, Groups, merge
from lightning_compress.surgery.input_statistics import InputStatistics
from lightning_compress.surgery.paired_moments import PairedMoments
from lightning_compress.surgery.statistics import StatisticsCollector, gather, group_zero_share, per_unit
from lightning_compress.surgery.targets import find_weights, refuse_text
from lightning_compress.surgery.tracing import TracingInput, capture, evaluation_mode, private_copy
from lightning_compress.surgery.verification import mask_removed_, verify_edit

__all__ = [
    "Counted",
    "Coupled",
    "Group",
    "Groups",
    "InputStatistics",
    "Option",
    "PairedMoments",
    "StatisticsCollector",
    "TracingInput",
    "allocate",
    "capture",
    "evaluation_mode",
    "find_groups",
    "find_weights",
    "fold_batchnorm_",
    "gather",
    "group_zero_share",
    "mask_removed_",
    "merge",
    "per_unit",
    "private_copy",
    "recalibrate_batchnorm_",
    "recalibrate_if_better_",
    "refuse_text",
    "verify_edit",
]
