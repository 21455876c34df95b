"""Pruning with and without the network as it was before for a teacher, over ten resplits.

The same in one run of the command: lightning-compress recipe=prune_with_teacher

$ python recipes/prune_with_teacher.py
"""

import copy
from functools import cache

import torch
from digits_students import OUTPUTS, SPLITS, TEST_TO_TRAIN, Student, fresh, resplit, score
from fits import quiet
from lightning import Trainer
from torch.utils.data import DataLoader, TensorDataset

from lightning_compress import NeuronPruning, WeightPruning
from lightning_compress.report.arms import run_arms
from lightning_compress.report.controls import distillation_arms

HIDDEN, EPOCHS = 64, 30
PRUNING = {"95 % of the weights": lambda: WeightPruning(0.95), "90 % of the neurons": lambda: NeuronPruning(0.9)}
ARMS = ("no teacher", "pseudo-labels", "distillation")


def fit(module: Student, split: int, callbacks: list, epochs: int) -> None:
    """A fit on the split's training part."""
    images, labels, *_ = resplit(split)
    quiet()
    loader = DataLoader(TensorDataset(images, labels), 64, shuffle=True, generator=torch.Generator().manual_seed(split))
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(
        max_steps=epochs * len(loader), accelerator="cpu", enable_model_summary=False, callbacks=callbacks, **options
    )
    trainer.fit(module, loader)


@cache
def dense(split: int) -> Student:
    """The network before."""
    module = fresh(HIDDEN, split)
    fit(module, split, [], EPOCHS)
    return module


def run(cut: str, arm: str, split: int) -> dict[str, float]:
    """One network on one split."""
    *_, test_images, test_labels = resplit(split)
    if arm == "dense":
        return score(dense(split), test_images, test_labels)
    module = copy.deepcopy(dense(split))
    build = distillation_arms(dense(split), 10, alpha=0.7, temperature=4.0, fidelity=False)[arm]
    fit(module, split, [PRUNING[cut](), *([build()] if build else [])], EPOCHS)
    return score(module, test_images, test_labels)


if __name__ == "__main__":
    for cut in PRUNING:
        arms = {arm: lambda split, arm=arm, cut=cut: run(cut, arm, split) for arm in ("dense", *ARMS)}
        folder = OUTPUTS / "prune_with_teacher" / cut.replace(" ", "_").replace("%", "percent")
        print(f"\n{cut}\n")
        print(run_arms(arms, range(SPLITS), folder, test_to_train=TEST_TO_TRAIN).table("accuracy", "no teacher", "ECE"))
