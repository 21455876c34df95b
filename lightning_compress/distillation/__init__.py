"""Knowledge distillation: any student, any teachers, an ensemble into one small network."""

from lightning_compress.distillation.callback import Distillation
from lightning_compress.distillation.class_bias import fit_class_bias
from lightning_compress.distillation.ensemble import Worth, fit_weights, leave_one_out
from lightning_compress.distillation.fidelity import Fidelity, expected_calibration_error
from lightning_compress.distillation.fingerprint import fingerprint
from lightning_compress.distillation.indexed import Indexed, IndexedBatch, numbered
from lightning_compress.distillation.module import DistillationModule
from lightning_compress.distillation.numbered_data import NumberedData
from lightning_compress.distillation.prebuild import build_cache
from lightning_compress.distillation.ramp import Ramp
from lightning_compress.distillation.strip import strip
from lightning_compress.distillation.taps import Tap
from lightning_compress.distillation.teacher import Teacher
from lightning_compress.distillation.transfer import TransferSet

__all__ = [
    "Distillation",
    "DistillationModule",
    "Fidelity",
    "Indexed",
    "IndexedBatch",
    "NumberedData",
    "Ramp",
    "Tap",
    "Teacher",
    "TransferSet",
    "Worth",
    "build_cache",
    "expected_calibration_error",
    "fingerprint",
    "fit_class_bias",
    "fit_weights",
    "leave_one_out",
    "numbered",
    "strip",
]
