"""Fewer bits: fake quantization, clustering, binary and ternary weights."""

from lightning_compress.quantization.binary_connect import BinaryConnect
from lightning_compress.quantization.bit_allocation import Allocation, allocate_bits
from lightning_compress.quantization.bit_budget import BitBudget
from lightning_compress.quantization.calibration import calibrate
from lightning_compress.quantization.callback import QuantizationAwareTraining
from lightning_compress.quantization.entropy_constrained import entropy_constrained, ideal_bytes, solve_rate
from lightning_compress.quantization.kmeans import Codebook, share_weights
from lightning_compress.quantization.network import FakeQuantization
from lightning_compress.quantization.packing import pack_binary, pack_ternary, unpack_binary, unpack_ternary
from lightning_compress.quantization.sensitivity import Sensitivity, sensitivity
from lightning_compress.quantization.ternary_weights import TernaryWeights
from lightning_compress.quantization.transparent import TransparentWeights
from lightning_compress.quantization.weight_clustering import WeightClustering

__all__ = [
    "Allocation",
    "BinaryConnect",
    "BitBudget",
    "Codebook",
    "FakeQuantization",
    "QuantizationAwareTraining",
    "Sensitivity",
    "TernaryWeights",
    "TransparentWeights",
    "WeightClustering",
    "allocate_bits",
    "calibrate",
    "entropy_constrained",
    "ideal_bytes",
    "pack_binary",
    "pack_ternary",
    "sensitivity",
    "share_weights",
    "solve_rate",
    "unpack_binary",
    "unpack_ternary",
]
