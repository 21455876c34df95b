"""Four tenths of the labels are wrong: a teacher trained on them is still a better guide than they are.

600 steps are few enough to keep plain training from learning the noise by heart; 2000 are not.

$ python recipes/label_noise.py
$ python recipes/label_noise.py confirm    # the long training alone, on splits that no setting was chosen on
"""

import sys
from collections.abc import Sequence

import torch
from digits_students import (
    OUTPUTS,
    SPLITS,
    TEST_TO_TRAIN,
    ensemble_score,
    fresh,
    kernel_ensemble,
    resplit,
    score,
    train,
)

from lightning_compress.distillation import TransferSet
from lightning_compress.report.arms import run_arms
from lightning_compress.report.controls import distillation_arms

NOISE, HIDDEN = 0.4, 32
SHORT = ("no teacher", "label smoothing", "weight decay", "pseudo-labels", "distillation")
MIXED = ("no teacher, mixup", "pseudo-labels, mixup", "distillation, mixup")
LONG = ("no teacher, 2000 steps", "pseudo-labels, 2000 steps", "distillation, 2000 steps")


def noisy(labels: torch.Tensor, seed: int) -> torch.Tensor:
    """Labels of which a share is drawn anew, uniformly over the other nine classes."""
    generator = torch.Generator().manual_seed(seed)
    wrong = torch.rand(len(labels), generator=generator) < NOISE
    other = (labels + torch.randint(1, 10, labels.shape, generator=generator)) % 10
    return torch.where(wrong, other, labels)


def run(arm: str, split: int) -> dict[str, float]:
    """One student on one split."""
    images, labels, test_images, test_labels = resplit(split)
    labels = noisy(labels, split)
    arm, _, extra = arm.partition(", ")
    mixes = extra == "mixup"
    callback = None
    if arm not in ("no teacher", "weight decay"):
        teachers = kernel_ensemble(images, labels, seed=split)
        if arm == "teacher":
            return ensemble_score(teachers, test_images, test_labels)
        transfer = TransferSet(images, mixup=1.0, seed=split) if mixes else None
        options = {"alpha": 1.0, "temperature": 1.0, "pool": "mean_probabilities", "transfer": transfer}
        callback = distillation_arms(teachers, 10, smoothing=0.2, fidelity=False, **options)[arm]()
    decay = 0.3 if arm == "weight decay" else 0.0
    student = fresh(HIDDEN, split, weight_decay=decay, mixup=mixes and arm == "no teacher")
    train(student, images, labels, callback, seed=split, steps=2000 if extra == "2000 steps" else 600)
    return score(student, test_images, test_labels)


def main(groups: Sequence[Sequence[str]], splits: range) -> None:
    """Run the groups of arms, and print a table for each."""
    for group in groups:
        arms = {name: lambda split, name=name: run(name, split) for name in group}
        comparison = run_arms(arms, splits, OUTPUTS / "label_noise", test_to_train=TEST_TO_TRAIN)
        baseline = next(name for name in group if name.startswith("no teacher"))
        print(comparison.table("accuracy", baseline, "ECE"), "\n")


if __name__ == "__main__":
    if sys.argv[1:] == ["confirm"]:
        main([LONG], range(100, 100 + SPLITS))
    else:
        main([("teacher", *SHORT, *MIXED), LONG], range(SPLITS))
