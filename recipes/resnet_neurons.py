"""A small ResNet with 2.5x fewer multiply-accumulates: neurons taken out of the trained network, which may teach it.

All arms have as many epochs, half of them on the whole network, which one fit trains for all; the control trains it on.
The rival of equal cost is a narrow network of the same kind, from scratch.

$ python recipes/resnet_neurons.py digits 20        # or: textures 3

Each finished run is one file under outputs/recipes/resnet_neurons; the same command goes on where it stopped.
"""

import copy
import sys
from functools import partial

import lightning as L
import torch
from digits_fits import OUTPUTS, TEST_TO_TRAIN, figures
from fits import fit
from lightning.pytorch.callbacks import Callback

import lightning_compress as lc
from lightning_compress.report.arms import run_arms
from lightning_compress.training import Schedule
from lightning_compress.zoo import Classifier, Digits, Textures

TIMES = 2.5
DATA = {"digits": Digits, "textures": Textures}
EPOCHS = {"digits": 20, "textures": 16}
"""Of either half."""
RATE, CHANNELS, NARROW = 3e-3, (16, 32, 64), (10, 20, 40)
ARMS = ("dense", "pruned", "pruned, taught", "narrow")


def fresh(split: int, classes: int, channels: tuple[int, ...]) -> Classifier:
    """A network whose first weights depend on the split alone; AdamW, cosine."""
    L.seed_everything(split, verbose=False)
    return Classifier("small_resnet", num_classes=classes, network_options={"channels": channels}, lr=RATE)


def whole(kind: str, split: int, data: Digits | Textures) -> Classifier:
    """The network as all arms but the narrow one find it; trained once a split."""
    path = OUTPUTS / "resnet_neurons" / "whole" / f"{kind}-{split}.pt"
    module = fresh(split, data.num_classes, CHANNELS)
    if path.exists():
        module.load_state_dict(torch.load(path, weights_only=True))
    else:
        fit(module, data.train_dataloader(), EPOCHS[kind])
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(module.state_dict(), path)
    return module


def run(kind: str, arm: str, split: int) -> dict[str, float]:
    """Accuracies in per cent, multiply-accumulates of one picture."""
    data = DATA[kind](seed=split)
    data.setup()
    if arm == "narrow":
        module = fresh(split, data.num_classes, NARROW)
        fit(module, data.train_dataloader(), 2 * EPOCHS[kind])
    else:
        module = whole(kind, split, data)
        callbacks: list[Callback] = []
        if arm != "dense":
            schedule = Schedule("iterative", start=0.0, end=0.5)
            callbacks.append(lc.NeuronPruning(1 - 1 / TIMES, of="macs", schedule=schedule, round_to=1))
        if arm == "pruned, taught":
            callbacks.append(lc.Distillation(copy.deepcopy(module.network), temperature=4.0, alpha=0.7, fidelity=False))
        L.seed_everything(split, verbose=False)
        fit(module, data.train_dataloader(), EPOCHS[kind], *callbacks)
    return {**figures(module, data), "MACs": lc.measure(module, data.test.tensors[0][:1]).macs}


def main() -> None:
    """All arms on all splits of one kind of data."""
    kind, splits = sys.argv[1], int(sys.argv[2])
    arms = {arm: partial(run, kind, arm) for arm in ARMS}
    comparison = run_arms(arms, range(splits), OUTPUTS / "resnet_neurons" / kind, test_to_train=TEST_TO_TRAIN)
    print(comparison.table("accuracy", "dense", "validation", "MACs"))


if __name__ == "__main__":
    main()
