"""The configuration files build the callbacks, and their values are the constructors' defaults."""

import inspect
from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

import lightning_compress
from lightning_compress.quantization import BinaryConnect, TernaryWeights, WeightClustering

CONF = Path(lightning_compress.__file__).parents[1] / "conf" / "callbacks"
CALLBACKS = {
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
        found = tuple(values[key]) if key == "exclude" else values[key]
        assert found == parameter.default, key
    assert isinstance(instantiate(values), CALLBACKS[name])


def test_clusters_by_name_and_a_gate_can_be_configured():
    values = {"clusters": {"fc3": 64, "*": 8}, "recover": {"monitor": "val_acc"}}
    callback = instantiate(OmegaConf.merge(OmegaConf.load(CONF / "weight_clustering.yaml"), values))
    assert callback.recover.monitor == "val_acc"
    assert callback._clusters == {"fc3": 64, "*": 8}
