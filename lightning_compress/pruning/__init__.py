"""Pruning of single weights (to exact zeros) and of neurons (taken out for real)."""

from lightning_compress.pruning.dead_neurons import DeadNeurons, dead_neurons
from lightning_compress.pruning.evidence import Criterion, Evidence, needs, repairs
from lightning_compress.pruning.masks import Masks
from lightning_compress.pruning.neuron_pruning import NeuronPruning
from lightning_compress.pruning.patterns import Pattern
from lightning_compress.pruning.regrowth import Regrowth
from lightning_compress.pruning.regularization import SparsityRegularization
from lightning_compress.pruning.sensitivity import Sensitivity, sensitivity
from lightning_compress.pruning.threshold import keep_top
from lightning_compress.pruning.weight_pruning import WeightPruning
from lightning_compress.pruning.weights import Allocation
from lightning_compress.surgery import find_weights

__all__ = [
    "Allocation",
    "Criterion",
    "DeadNeurons",
    "Evidence",
    "Masks",
    "NeuronPruning",
    "Pattern",
    "Regrowth",
    "Sensitivity",
    "SparsityRegularization",
    "WeightPruning",
    "dead_neurons",
    "find_weights",
    "keep_top",
    "needs",
    "repairs",
    "sensitivity",
]
