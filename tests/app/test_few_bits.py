"""Recipes whose weights have few bits: the file holds the values on the grid, not the real ones behind them."""

import pytest

import lightning_compress as lc
from lightning_compress.zoo import Classifier

QUICK = ("logger=csv", "report.samples=0", "report.sensitivity=false")
RECIPES = {
    "bits": (2**4 - 1, ("stages.dense.epochs=1", "stages.quantize.epochs=1", "data.batch_size=200")),
    "mixed_precision": (2**8 - 1, ("stages.dense.epochs=1", "stages.quantize.epochs=1", "data.batch_size=200")),
    "binary_connect": (2, ("stages.binary.epochs=1", "data.batch_size=200")),
    "clusters": (9, ("stages.prune.epochs=4", "callbacks.weights.sparsity=0.3", "stages.cluster.epochs=1")),
}


@pytest.mark.parametrize(
    "recipe",
    ["mixed_precision", "binary_connect", *(pytest.param(one, marks=pytest.mark.slow) for one in ("bits", "clusters"))],
)
def test_the_file_of_a_recipe_of_few_bits_holds_few_values(command, recipe):
    most, quick = RECIPES[recipe]
    assert command(f"recipe={recipe}", *QUICK, *quick) == 0
    lenet = "lenet_5" if recipe in ("bits", "mixed_precision") else "lenet_300_100"
    module = lc.load_compressed(command.run_folder / "model.lcz", into=Classifier(lenet))
    assert 1 < max(row.unique().numel() for row in module.network.fc1.weight) <= most
