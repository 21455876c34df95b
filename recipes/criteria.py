"""Which criterion? All at an equal budget of zeros, neurons and epochs, with random as the control.

Weights: LeNet-300-100 to 97 % zeros; SNIP and GraSP in one cut before the first step, as they are meant, and the others
while training. Neurons: LeNet-5 to 70 % fewer channels. Numbers of splits can be given: 3 to screen, 10 for the table.

$ python recipes/criteria.py 10
"""

import sys

import lightning as L
from digits_fits import OUTPUTS, TEST_TO_TRAIN, digits, figures, train

from lightning_compress.pruning import NeuronPruning, WeightPruning
from lightning_compress.pruning.evidence import NEURONS_ONLY, WEIGHTS_ONLY, needs_of
from lightning_compress.registry import names, resolve
from lightning_compress.report.arms import run_arms
from lightning_compress.zoo import Classifier

EPOCHS, SPARSITY, AMOUNT, RATE = 40, 0.97, 0.7, 2e-3
AT_INIT = ("snip", "grasp")
PACKAGE = "lightning_compress.pruning.criteria"
NEEDS = {name: needs_of(resolve(name, PACKAGE)) for name in names(PACKAGE)}
OF_WEIGHTS = [name for name, needs in NEEDS.items() if not needs & NEURONS_ONLY]
OF_NEURONS = [name for name, needs in NEEDS.items() if not needs & (WEIGHTS_ONLY | {"scale"})]


def run(network: str, callback: object, seed: int) -> dict[str, float]:
    """One fit from the weights that belong to the seed."""
    data = digits(seed)
    L.seed_everything(seed, verbose=False)
    module = Classifier(network, lr=RATE)
    train(module, data, EPOCHS, *([] if callback is None else [callback]))
    return figures(module, data)


def weights(criterion: str) -> WeightPruning:
    """The same number of zeros, by this criterion."""
    if criterion in AT_INIT:
        return WeightPruning(SPARSITY, criterion=criterion, schedule="one_shot", max_step=1.0)
    return WeightPruning(SPARSITY, criterion=criterion)


if __name__ == "__main__":
    splits = range(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
    rooms = {
        "lenet_300_100": {name: lambda name=name: weights(name) for name in OF_WEIGHTS},
        "lenet_5": {name: lambda name=name: NeuronPruning(AMOUNT, criterion=name) for name in OF_NEURONS},
    }
    for network, callbacks in rooms.items():
        arms = {"dense": lambda seed, network=network: run(network, None, seed)}
        arms |= {
            name: lambda seed, network=network, build=build: run(network, build(), seed)
            for name, build in callbacks.items()
        }
        comparison = run_arms(arms, splits, OUTPUTS / "criteria" / network, test_to_train=TEST_TO_TRAIN)
        print(f"{network}\n\n{comparison.table('accuracy', 'random', 'validation')}\n")
