"""Fifty labels and a transfer set: what a teacher that knows more gives to a student that has seen little.

$ python recipes/few_labels.py
"""

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
from sklearn.model_selection import train_test_split

from lightning_compress.distillation import TransferSet
from lightning_compress.report.arms import run_arms
from lightning_compress.report.controls import distillation_arms

LABELS, HIDDEN = 50, 16
ARMS = ("no teacher", "label smoothing", "pseudo-labels", "distillation")


def run(arm: str, split: int) -> dict[str, float]:
    """One student on one split."""
    images, labels, test_images, test_labels = resplit(split)
    few, _ = train_test_split(torch.arange(len(images)).numpy(), train_size=LABELS, stratify=labels, random_state=split)
    teachers = kernel_ensemble(images, labels, seed=split)
    if arm == "teacher":
        return ensemble_score(teachers, test_images, test_labels)
    options = {"alpha": 0.9, "temperature": 2.0, "pool": "mean_probabilities", "fidelity": False}
    build = distillation_arms(teachers, 10, transfer=TransferSet(images, seed=split), **options)[arm]
    student = fresh(HIDDEN, split)
    train(student, images[few], labels[few], build and build(), seed=split)
    return score(student, test_images, test_labels)


if __name__ == "__main__":
    arms = {name: lambda split, name=name: run(name, split) for name in ("teacher", *ARMS)}
    comparison = run_arms(arms, range(SPLITS), OUTPUTS / "few_labels", test_to_train=TEST_TO_TRAIN)
    print(comparison.table("accuracy", "no teacher", "ECE"))
    print("\ndistillation - pseudo-labels:", comparison.difference("distillation", "pseudo-labels", "accuracy"))
