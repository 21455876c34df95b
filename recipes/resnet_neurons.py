"""A small ResNet with 2.5x fewer multiply-accumulates: its neurons taken out in one fit, next to the whole network.

The rival of equal cost is a narrow network of the same kind, trained from scratch for as many epochs. All arms have
the same weights to begin with (but for the narrow one), the same epochs and the same schedule.

$ python recipes/resnet_neurons.py digits 20        # or: textures 3

Each finished run is one file under outputs/recipes/resnet_neurons; the same command goes on where it stopped.
"""

import sys
from functools import partial

import lightning as L
from digits_fits import OUTPUTS, TEST_TO_TRAIN, figures
from fits import fit

import lightning_compress as lc
from lightning_compress.report.arms import run_arms
from lightning_compress.training import Schedule
from lightning_compress.zoo import Classifier, Digits, Textures

TIMES = 2.5
DATA = {"digits": Digits, "textures": Textures}
SETTINGS = {"digits": (40, 3e-3), "textures": (24, 3e-3)}
"""Epochs and learning rate."""
CHANNELS, NARROW = (16, 32, 64), (10, 20, 40)


def run(data: str, arm: str, split: int, *, balance: float = 0.5) -> dict[str, float]:
    """One fit; accuracy in per cent, multiply-accumulates of one picture."""
    part = DATA[data](seed=split)
    part.setup()
    epochs, rate = SETTINGS[data]
    L.seed_everything(split, verbose=False)
    channels = NARROW if arm == "narrow" else CHANNELS
    module = Classifier("small_resnet", num_classes=part.num_classes, network_options={"channels": channels}, lr=rate)
    pruning = []
    if arm == "pruned":
        schedule = Schedule("iterative", start=0.3, end=0.7)
        pruning = [lc.NeuronPruning(1 - 1 / TIMES, of="macs", schedule=schedule, round_to=1, balance=balance)]
    fit(module, part.train_dataloader(), epochs, *pruning)
    macs = lc.measure(module, part.test.tensors[0][:1]).macs
    return {**figures(module, part), "MACs": macs}


def main() -> None:
    """All arms on all splits of one kind of data."""
    data, splits = sys.argv[1], int(sys.argv[2])
    arms = {arm: partial(run, data, arm) for arm in ("dense", "pruned", "narrow")}
    comparison = run_arms(arms, range(splits), OUTPUTS / "resnet_neurons" / data, test_to_train=TEST_TO_TRAIN)
    print(comparison.table("accuracy", "dense", "validation", "MACs"))


if __name__ == "__main__":
    main()
