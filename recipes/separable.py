"""Trained 3x3 convolutions made depthwise separable: random, by SVD, and fitted to 256 unlabelled pictures.

One trained network a seed; each arm converts it, is tested at once, and again after one and after three epochs of
training. The control is the same small network trained from scratch for as long as the dense one was.

$ python recipes/separable.py
"""

from statistics import fmean

import lightning as L
from digits_convnet import (
    EPOCHS,
    OUTPUTS,
    RATE,
    SEEDS,
    TEST_TO_TRAIN,
    accuracy,
    calibration,
    dense,
    digits,
    parameters,
    timed,
    train,
)
from torch import nn

from lightning_compress.architecture import separable_
from lightning_compress.report.arms import run_arms

TUNING = 1e-3


def run(seed: int, kind: str, multiplier: int = 1, order: str = "depthwise_first") -> dict[str, float]:
    """One conversion of one network, then one and three epochs."""
    data, network = digits(seed), dense(seed)
    batches = calibration(data)
    aware = kind == "data"
    recalibrate = "auto" if kind in ("data", "SVD, BatchNorm") else False
    options = {"order": order, "data_aware": aware, "recalibrate": recalibrate, "branches": True}
    seconds = timed(lambda: separable_(network, multiplier, data=batches, **options))
    if kind in ("random", "scratch"):
        L.seed_everything(seed, verbose=False)
        for layer in network.modules():
            if ((kind == "scratch" or getattr(layer, "groups", 1) > 1) and hasattr(layer, "reset_parameters")) or (
                isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)
            ):
                layer.reset_parameters()
    if kind == "scratch":
        train(network, data, EPOCHS, RATE)
    found = {
        "accuracy": accuracy(network, data.test.tensors),
        "parameters": parameters(network),
        "CPU seconds": seconds,
    }
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    for epochs in () if kind == "scratch" else (1, 3):
        network.load_state_dict(weights)
        L.seed_everything(seed, verbose=False)
        train(network, data, epochs, TUNING)
        found[f"after {epochs}"] = accuracy(network, data.test.tensors)
    return found


def kept(seed: int) -> dict[str, float]:
    """The trained network itself."""
    network = dense(seed)
    return {"accuracy": accuracy(network, digits(seed).test.tensors), "parameters": parameters(network)}


ARMS = {
    "dense": kept,
    "random": lambda seed: run(seed, "random"),
    "SVD": lambda seed: run(seed, "SVD"),
    "SVD, BatchNorm": lambda seed: run(seed, "SVD, BatchNorm"),
    "data": lambda seed: run(seed, "data"),
    "data, pointwise first": lambda seed: run(seed, "data", order="pointwise_first"),
    "data, m=2": lambda seed: run(seed, "data", 2),
    "from scratch": lambda seed: run(seed, "scratch"),
}

if __name__ == "__main__":
    comparison = run_arms(ARMS, range(SEEDS), OUTPUTS / "separable", test_to_train=TEST_TO_TRAIN)
    print(comparison.table("accuracy", "dense", "parameters"), "\n")
    print("| arm | straight after | after 1 epoch | after 3 epochs | CPU seconds |\n|---|---|---|---|---|")
    for arm in list(ARMS)[1:-1]:
        cells = [fmean(comparison.values(arm, name)) for name in ("accuracy", "after 1", "after 3", "CPU seconds")]
        print(f"| {arm} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |")
