"""How far does a trained network go in low rank without any training afterwards? 2x to 16x fewer parameters.

One trained network a seed. The budget is of the whole network; which layer takes which factorisation and rank is chosen
by the error of the outputs. "weights" fits factors to weights, "data" to what the layers compute on 256 unlabelled
pictures; "channel" allows the truncated SVD alone, "all" the spatial and Tucker factorisations too, "separable" those
and depthwise separable layers.

$ python recipes/low_rank.py
"""

from statistics import fmean

from digits_convnet import (
    OUTPUTS,
    SEEDS,
    TEST_TO_TRAIN,
    accuracy,
    calibration,
    dense,
    digits,
    parameters,
    timed,
)

from lightning_compress.architecture import low_rank_
from lightning_compress.report.arms import run_arms

FACTORS = (2, 4, 8, 16)
METHODS = {
    "channel": ("channel",),
    "all": ("channel", "spatial", "tucker"),
    "separable": ("channel", "spatial", "tucker", "depthwise_first", "depthwise_branches"),
}
KINDS = (("weights", "channel"), ("weights", "all"), ("data", "channel"), ("data", "all"), ("data", "separable"))


def run(seed: int, fit: str, methods: str, factor: int) -> dict[str, float]:
    """One conversion of one network."""
    data, network = digits(seed), dense(seed)
    batches, chosen = calibration(data), METHODS[methods]
    seconds = timed(lambda: low_rank_(network, 1 / factor, methods=chosen, data=batches, data_aware=fit == "data"))
    found = {"accuracy": accuracy(network, data.test.tensors), "parameters": parameters(network)}
    return {**found, "CPU seconds": seconds}


def kept(seed: int) -> dict[str, float]:
    """The trained network itself."""
    network = dense(seed)
    return {"accuracy": accuracy(network, digits(seed).test.tensors), "parameters": parameters(network)}


if __name__ == "__main__":
    arms = {"dense": kept} | {
        f"{factor}x, {fit}, {methods}": lambda seed, fit=fit, methods=methods, factor=factor: run(
            seed, fit, methods, factor
        )
        for factor in FACTORS
        for fit, methods in KINDS
    }
    comparison = run_arms(arms, range(SEEDS), OUTPUTS / "low_rank", test_to_train=TEST_TO_TRAIN)
    print(comparison.table("accuracy", "dense", "parameters"), "\n")
    worst = max(max(comparison.values(arm, "CPU seconds")) for arm in arms if arm != "dense")
    mean = fmean(fmean(comparison.values(arm, "CPU seconds")) for arm in arms if arm != "dense")
    print(f"CPU seconds of a conversion: {mean:.1f} on average, {worst:.1f} at most")
