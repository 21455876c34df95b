"""Is it worth to prune, or does the small network do as well from scratch? With lottery tickets as the third arm.

LeNet-300-100 on digits. Neurons: a fifth is left; the same widths are then trained from scratch, as long as the fit
that pruned, and twice as long. Weights: two in a hundred are left, fine-tuned; rewound to their first values after each
cut (a lottery ticket); and the same mask from other first values. Number of splits as argument.

$ python recipes/prune_vs_scratch.py 10
"""

import sys
from functools import partial

import lightning as L
import torch
from digits_fits import OUTPUTS, TEST_TO_TRAIN, digits, figures, train
from torch import nn

from lightning_compress.pruning import NeuronPruning, WeightPruning
from lightning_compress.report.arms import run_arms
from lightning_compress.training import Schedule
from lightning_compress.zoo import Classifier

EPOCHS, RATE, NEURONS, WEIGHTS = 60, 2e-3, 0.8, 0.98
SCHEDULE = Schedule("iterative", start=1 / 3, end=0.75)
ROUNDS = Schedule("iterative", start=1 / 3, end=0.9)


def fresh(seed: int) -> Classifier:
    """LeNet-300-100 with the first weights of the seed."""
    L.seed_everything(seed, verbose=False)
    return Classifier("lenet_300_100", lr=RATE)


def pruned(seed: int, callback: object | None, epochs: int = EPOCHS) -> Classifier:
    """One fit that prunes."""
    module = fresh(seed)
    train(module, digits(seed), epochs, *([] if callback is None else [callback]))
    return module


def neurons(seed: int) -> Classifier:
    """A fifth of the neurons, fine-tuned."""
    return pruned(seed, NeuronPruning(NEURONS, schedule=SCHEDULE, round_to=1))


def anew(module: Classifier, seed: int) -> Classifier:
    """The same network with other first weights."""
    torch.manual_seed(10_000 + seed)
    for part in module.modules():
        if isinstance(part, nn.Linear):
            part.reset_parameters()
    return module


def scratch(seed: int, budget: int) -> Classifier:
    """The pruned network's widths from scratch."""
    module = anew(neurons(seed), seed)
    train(module, digits(seed), budget * EPOCHS)
    return module


def ticket(seed: int, *, other: bool = False) -> Classifier:
    """Weights rewound after each cut, then one whole fit; ``other``: from other first values."""
    found = pruned(seed, WeightPruning(WEIGHTS, schedule=ROUNDS, rewind="init"))
    first = anew(fresh(seed), seed) if other else fresh(seed)
    with torch.no_grad():
        for start, end in zip(first.parameters(), found.parameters(), strict=True):
            if start.dim() > 1:
                start *= end != 0
    train(first, digits(seed), EPOCHS, WeightPruning(keep_zeros=True))
    return first


ARMS = {
    "dense": lambda seed: pruned(seed, None),
    "dense, twice the epochs": lambda seed: pruned(seed, None, 2 * EPOCHS),
    "neurons, fine-tuned": neurons,
    "their widths from scratch": lambda seed: scratch(seed, 1),
    "from scratch, twice the epochs": lambda seed: scratch(seed, 2),
    "weights, fine-tuned": lambda seed: pruned(seed, WeightPruning(WEIGHTS, schedule=SCHEDULE)),
    "lottery ticket": ticket,
    "its mask, other first weights": partial(ticket, other=True),
}


def run(arm: str, seed: int) -> dict[str, float]:
    """Accuracy and the parameters that are not zero."""
    module = ARMS[arm](seed)
    alive = sum(int((parameter != 0).sum()) for parameter in module.parameters())
    return {**figures(module, digits(seed)), "parameters": alive}


if __name__ == "__main__":
    splits = range(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
    arms = {arm: partial(run, arm) for arm in ARMS}
    comparison = run_arms(arms, splits, OUTPUTS / "prune_vs_scratch", test_to_train=TEST_TO_TRAIN)
    print(comparison.table("accuracy", "dense", "validation", "parameters"), "\n")
    for one, other in (
        ("neurons, fine-tuned", "their widths from scratch"),
        ("neurons, fine-tuned", "from scratch, twice the epochs"),
        ("lottery ticket", "its mask, other first weights"),
        ("lottery ticket", "weights, fine-tuned"),
    ):
        print(f"{one} - {other}: {comparison.difference(one, other, 'accuracy')}")
