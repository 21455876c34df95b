"""Make networks smaller and faster while they train, inside PyTorch Lightning."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_compress.architecture import DepthwiseSeparable, LowRank
    from lightning_compress.artifact import inspect_compressed, load_compressed, save_compressed
    from lightning_compress.artifact.callback import SaveCompressed
    from lightning_compress.distillation import Distillation, DistillationModule
    from lightning_compress.dynamic import EarlyExits, SlimmableWidths, StochasticDepth
    from lightning_compress.errors import CompressionError
    from lightning_compress.export import export_onnx
    from lightning_compress.measure import measure
    from lightning_compress.plan import Plan, explain
    from lightning_compress.pruning import NeuronPruning, WeightPruning
    from lightning_compress.quantization import (
        BinaryConnect,
        QuantizationAwareTraining,
        TernaryWeights,
        WeightClustering,
    )
    from lightning_compress.report.callback import CompressionReport
    from lightning_compress.training import Recovery, load_from_checkpoint

_HOME = {
    "BinaryConnect": "lightning_compress.quantization",
    "CompressionError": "lightning_compress.errors",
    "CompressionReport": "lightning_compress.report.callback",
    "DepthwiseSeparable": "lightning_compress.architecture",
    "Distillation": "lightning_compress.distillation",
    "DistillationModule": "lightning_compress.distillation",
    "EarlyExits": "lightning_compress.dynamic",
    "LowRank": "lightning_compress.architecture",
    "NeuronPruning": "lightning_compress.pruning",
    "Plan": "lightning_compress.plan",
    "QuantizationAwareTraining": "lightning_compress.quantization",
    "Recovery": "lightning_compress.training",
    "SaveCompressed": "lightning_compress.artifact.callback",
    "SlimmableWidths": "lightning_compress.dynamic",
    "StochasticDepth": "lightning_compress.dynamic",
    "TernaryWeights": "lightning_compress.quantization",
    "WeightClustering": "lightning_compress.quantization",
    "WeightPruning": "lightning_compress.pruning",
    "explain": "lightning_compress.plan",
    "export_onnx": "lightning_compress.export",
    "inspect_compressed": "lightning_compress.artifact",
    "load_compressed": "lightning_compress.artifact",
    "load_from_checkpoint": "lightning_compress.training",
    "measure": "lightning_compress.measure.cost",
    "save_compressed": "lightning_compress.artifact",
}
_ROOMS = (
    "architecture",
    "artifact",
    "distillation",
    "dynamic",
    "export",
    "measure",
    "plan",
    "pruning",
    "quantization",
    "report",
    "surgery",
    "training",
    "zoo",
)

__version__ = "0.1.0"
__all__ = [
    "BinaryConnect",
    "CompressionError",
    "CompressionReport",
    "DepthwiseSeparable",
    "Distillation",
    "DistillationModule",
    "EarlyExits",
    "LowRank",
    "NeuronPruning",
    "Plan",
    "QuantizationAwareTraining",
    "Recovery",
    "SaveCompressed",
    "SlimmableWidths",
    "StochasticDepth",
    "TernaryWeights",
    "WeightClustering",
    "WeightPruning",
    "explain",
    "export_onnx",
    "inspect_compressed",
    "load_compressed",
    "load_from_checkpoint",
    "measure",
    "save_compressed",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if name in _ROOMS:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
