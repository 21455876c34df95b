"""Han et al. 2015 on digits: how many times fewer weights until it costs accuracy, LeNet-300-100 and LeNet-5?

Their pruning was in a few rounds with training between; here as many cuts as it takes, none above a fifth of what is
left, in one fit. The dense network trains as long. Number of splits as argument.

$ python recipes/lenet_iterative.py 10
"""

import sys

import lightning as L
from digits_fits import OUTPUTS, TEST_TO_TRAIN, digits, figures, train

from lightning_compress.pruning import WeightPruning
from lightning_compress.report.arms import run_arms
from lightning_compress.training import Schedule
from lightning_compress.zoo import Classifier

EPOCHS, RATE = 80, 2e-3
TIMES = (12, 20, 40)


def run(network: str, times: int | None, seed: int) -> dict[str, float]:
    """One fit; without ``times`` the dense network."""
    data = digits(seed)
    L.seed_everything(seed, verbose=False)
    module = Classifier(network, lr=RATE)
    schedule = Schedule("cubic", start=0.1, end=0.7)
    pruning = [] if times is None else [WeightPruning(1 - 1 / times, allocation="lamp", schedule=schedule)]
    train(module, data, EPOCHS, *pruning)
    return figures(module, data)


if __name__ == "__main__":
    splits = range(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
    for network in ("lenet_300_100", "lenet_5"):
        arms = {"dense": lambda seed, network=network: run(network, None, seed)}
        arms |= {f"{k}x fewer": lambda seed, network=network, k=k: run(network, k, seed) for k in TIMES}
        comparison = run_arms(arms, splits, OUTPUTS / "lenet_iterative" / network, test_to_train=TEST_TO_TRAIN)
        print(f"{network}\n\n{comparison.table('accuracy', 'dense', 'validation')}\n")
