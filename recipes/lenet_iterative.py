"""Han et al. 2015 on digits: how many times fewer weights until it costs accuracy, LeNet-300-100 and LeNet-5?

Their pruning was in a few rounds with training between; here as many cuts as it takes, none above a fifth of what is
left, in one fit. The dense network trains as long. Number of splits and of epochs as arguments.

$ python recipes/lenet_iterative.py 10 80
"""

import sys

import lightning as L
from digits_fits import OUTPUTS, TEST_TO_TRAIN, digits, figures, train

from lightning_compress.pruning import WeightPruning
from lightning_compress.report.arms import run_arms
from lightning_compress.training import Schedule
from lightning_compress.zoo import Classifier

RATE = 2e-3
TIMES = (12, 20, 40)


def run(network: str, times: int | None, epochs: int, seed: int) -> dict[str, float]:
    """One fit; without ``times`` the dense network."""
    data = digits(seed)
    L.seed_everything(seed, verbose=False)
    module = Classifier(network, lr=RATE)
    schedule = Schedule("cubic", start=0.1, end=0.5)
    pruning = [] if times is None else [WeightPruning(1 - 1 / times, allocation="lamp", schedule=schedule)]
    train(module, data, epochs, *pruning)
    return figures(module, data)


if __name__ == "__main__":
    splits, epochs = (int(given) for given in (*sys.argv[1:], *("10", "80")[len(sys.argv) - 1 :]))
    for network in ("lenet_300_100", "lenet_5"):
        arms = {"dense": None, **{f"{times}x fewer": times for times in TIMES}}
        comparison = run_arms(
            {
                name: lambda seed, network=network, times=times: run(network, times, epochs, seed)
                for name, times in arms.items()
            },
            range(splits),
            OUTPUTS / "lenet_iterative" / f"{network}-{epochs}",
            test_to_train=TEST_TO_TRAIN,
        )
        print(f"{network}\n\n{comparison.table('accuracy', 'dense', 'validation')}\n", flush=True)
