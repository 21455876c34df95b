"""Trained layers made of smaller ones: low rank and depthwise separable, fitted to data."""

from lightning_compress.architecture.callbacks import DepthwiseSeparable, LowRank
from lightning_compress.architecture.conversion import Conversion, LayerChange
from lightning_compress.architecture.factorization import Choice, Factorization
from lightning_compress.architecture.functions import low_rank_, separable_
from lightning_compress.architecture.merging import merge_
from lightning_compress.architecture.regularization import LowRankRegularization, nuclear_gradient

__all__ = [
    "Choice",
    "Conversion",
    "DepthwiseSeparable",
    "Factorization",
    "LayerChange",
    "LowRank",
    "LowRankRegularization",
    "low_rank_",
    "merge_",
    "nuclear_gradient",
    "separable_",
]
