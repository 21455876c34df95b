"""The same number of parameters, once by single weights and once by whole neurons: accuracy, file and measured time.

LeNet-300-100 and LeNet-5 on digits, a tenth of the parameters left, the same epochs for all. Times are of one thread,
interleaved, dense over compressed, of the first split's networks. Number of splits as argument.

$ python recipes/weights_vs_neurons.py 10
"""

import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import lightning as L
import torch
from digits_fits import OUTPUTS, TEST_TO_TRAIN, digits, figures, train

from lightning_compress import measure, save_compressed
from lightning_compress.measure import compare_latency
from lightning_compress.pruning import NeuronPruning, WeightPruning
from lightning_compress.report.arms import run_arms
from lightning_compress.training import Schedule
from lightning_compress.zoo import Classifier

EPOCHS, RATE, REMOVED = 60, 2e-3, 0.9
SCHEDULE = {"start": 0.1, "end": 0.7}
ARMS = {
    "dense": lambda: [],
    "weights": lambda: [WeightPruning(REMOVED, schedule=Schedule("cubic", **SCHEDULE))],
    "neurons": lambda: [NeuronPruning(REMOVED, of="params", schedule=Schedule("iterative", **SCHEDULE), round_to=1)],
}


def fitted(network: str, arm: str, seed: int) -> tuple[Classifier, object]:
    """One fit from the weights that belong to the seed, and its data."""
    data = digits(seed)
    L.seed_everything(seed, verbose=False)
    module = Classifier(network, lr=RATE)
    train(module, data, EPOCHS, *ARMS[arm]())
    return module, data


def run(network: str, arm: str, seed: int) -> dict[str, float]:
    """Accuracy, parameters that are not zero, and bytes of the file."""
    module, data = fitted(network, arm, seed)
    cost = measure(module, data.test.tensors[0][:1])
    with TemporaryDirectory() as folder:
        size = save_compressed(module, Path(folder) / "model.lcz").bytes
    return {**figures(module, data), "parameters": cost.nonzero_parameters, "MACs": cost.macs, "bytes": size}


def times(network: str) -> str:
    """How many times faster than dense, batch by batch."""
    modules = {arm: fitted(network, arm, 0)[0].eval() for arm in ARMS}
    lines = ["| batch | weights | neurons |", "|---|---|---|"]
    for batch in (1, 64):
        pictures = torch.randn(batch, 1, 8, 8)
        with torch.inference_mode():
            calls = {arm: partial(module, pictures) for arm, module in modules.items()}
            rows = {row.name: row.ratio for row in compare_latency(calls, rounds=200).rows}
        cells = [f"{1 / rows[arm].median:.2f} [{1 / rows[arm].high:.2f}, {1 / rows[arm].low:.2f}]" for arm in ARMS][1:]
        lines.append(f"| {batch} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    splits = range(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
    for network in ("lenet_300_100", "lenet_5"):
        arms = {arm: partial(run, network, arm) for arm in ARMS}
        folder = OUTPUTS / "weights_vs_neurons" / network
        comparison = run_arms(arms, splits, folder, test_to_train=TEST_TO_TRAIN)
        table = comparison.table("accuracy", "dense", "validation", "parameters", "MACs", "bytes")
        print(f"{network}\n\n{table}\n\n{times(network)}\n", flush=True)
