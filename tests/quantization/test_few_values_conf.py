"""The configuration files build the callbacks, and their values are the constructors' defaults."""

import inspect
from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

import lightning_compress
from lightning_compress.quantization import (
    BinaryConnect,
    BitBudget,
    QuantizationAwareTraining,
    TernaryWeights,
    WeightClustering,
)

CONF = Path(lightning_compress.__file__).parents[1] / "conf" / "callbacks"
CALLBACKS = {
    "quantization_aware_training": QuantizationAwareTraining,
    "weight_clustering": WeightClustering,
    "binary_connect": BinaryConnect,
    "ternary_weights": TernaryWeights,
}


@pytest.mark.parametrize("name", CALLBACKS)
def test_values_are_the_defaults_of_the_constructor(name):
    parameters = inspect.signature(CALLBACKS[name]).parameters
    values = OmegaConf.load(CONF / f"{name}.yaml")
    assert set(values) - {"_target_", "_convert_"} == set(parameters)
    for key, parameter in parameters.items():
        found = tuple(values[key]) if isinstance(parameter.default, tuple) else values[key]
        assert found == parameter.default, key
    assert isinstance(instantiate(values), CALLBACKS[name])


def test_clusters_by_name_and_a_gate_can_be_configured():
    values = {"clusters": {"fc3": 64, "*": 8}, "recover": {"monitor": "val_acc"}}
    callback = instantiate(OmegaConf.merge(OmegaConf.load(CONF / "weight_clustering.yaml"), values))
    assert callback.recover.monitor == "val_acc"
    assert callback._clusters == {"fc3": 64, "*": 8}


@pytest.mark.parametrize("bits", [{0: 8, 0.5: 4}, {"network.fc1": 3}])
def test_bits_by_time_and_by_layer_can_be_configured(bits):
    values = OmegaConf.load(CONF / "quantization_aware_training.yaml")
    values.weight_bits = bits
    assert instantiate(values).settings.weight_bits == bits


def test_a_budget_can_be_configured_with_the_defaults_of_its_constructor():
    budget = OmegaConf.load(CONF.parent / "bit_budget" / "default.yaml")
    assert instantiate(budget) == BitBudget(3.0, bits=[2, 3, 4, 5, 6, 8])
    values = OmegaConf.load(CONF / "quantization_aware_training.yaml")
    values.weight_bits = budget
    assert instantiate(values).settings.weight_bits == BitBudget(3.0, bits=[2, 3, 4, 5, 6, 8])
    assert tuple(budget.bits) == BitBudget(3).bits
