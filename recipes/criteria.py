"""Which criterion? All at an equal budget of zeros, neurons and epochs, with random as the control.

Weights: LeNet-300-100 to 97 % zeros, of which each layer has the same share (ERK) whatever the criterion, since some
would empty a layer; SNIP and GraSP in one cut before the first step, as they are meant, and the others while training.
Neurons: LeNet-5 to 70 % fewer channels. All criteria are screened on three splits, in fits of half the
length, by the accuracy on the validation part; the three best go on, beside magnitude and random, to fits of the whole
length, on as many splits as the first argument says. The second is the number of epochs.

$ python recipes/criteria.py 10 40
"""

import sys
from collections.abc import Callable
from statistics import fmean

import lightning as L
from digits_fits import OUTPUTS, TEST_TO_TRAIN, digits, figures, train

from lightning_compress.pruning import NeuronPruning, WeightPruning
from lightning_compress.pruning.evidence import NEURONS_ONLY, WEIGHTS_ONLY, needs_of
from lightning_compress.registry import names, resolve
from lightning_compress.report.arms import Comparison, run_arms
from lightning_compress.zoo import Classifier

SPARSITY, AMOUNT, RATE = 0.97, 0.7, 2e-3
SCREENED, FINALISTS = 3, 3
ALWAYS = ("magnitude", "random")
AT_INIT = ("snip", "grasp")
PACKAGE = "lightning_compress.pruning.criteria"
NEEDS = {name: needs_of(resolve(name, PACKAGE)) for name in names(PACKAGE)}
LIKE_MAGNITUDE = ("lamp", "magnitude_l1")  # within a layer they rank weights as it does
OF_WEIGHTS = [name for name, needs in NEEDS.items() if not needs & NEURONS_ONLY and name not in LIKE_MAGNITUDE]
OF_NEURONS = [name for name, needs in NEEDS.items() if not needs & (WEIGHTS_ONLY | {"scale"})]


def weights(criterion: str) -> WeightPruning:
    """The same number of zeros, by this criterion."""
    options = {"schedule": "one_shot", "max_step": 1.0} if criterion in AT_INIT else {}
    return WeightPruning(SPARSITY, criterion=criterion, allocation="erk", **options)


def neurons(criterion: str) -> NeuronPruning:
    """The same number of channels, by this criterion."""
    return NeuronPruning(AMOUNT, criterion=criterion)


def run(network: str, build: Callable[[str], object], criterion: str, epochs: int, seed: int) -> dict[str, float]:
    """One fit from the weights that belong to the seed; "dense" prunes nothing."""
    data = digits(seed)
    L.seed_everything(seed, verbose=False)
    module = Classifier(network, lr=RATE)
    train(module, data, epochs, *([] if criterion == "dense" else [build(criterion)]))
    return figures(module, data)


def compared(network: str, build: Callable[[str], object], criteria: list[str], splits: int, epochs: int) -> Comparison:
    """These criteria over so many splits."""
    arms = {name: lambda seed, name=name: run(network, build, name, epochs, seed) for name in criteria}
    folder = OUTPUTS / "criteria" / f"{network}-{epochs}"
    return run_arms(arms, range(splits), folder, test_to_train=TEST_TO_TRAIN)


if __name__ == "__main__":
    splits, epochs = (int(given) for given in (*sys.argv[1:], *("10", "40")[len(sys.argv) - 1 :]))
    for network, build, criteria in (("lenet_300_100", weights, OF_WEIGHTS), ("lenet_5", neurons, OF_NEURONS)):
        screen = compared(network, build, criteria, SCREENED, epochs // 2)
        best = sorted(criteria, key=lambda name: -fmean(screen.values(name, "validation")))
        finalists = list(dict.fromkeys(["dense", *ALWAYS, *best[:FINALISTS]]))
        final = compared(network, build, finalists, splits, epochs)
        print(f"{network}, screened\n\n{screen.table('validation', 'random')}\n")
        print(f"{network}\n\n{final.table('accuracy', 'random', 'validation')}\n", flush=True)
