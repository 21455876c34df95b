"""A student that never sees a 3 recognises threes: soft targets say what they look like.

Hinton et al. 2015, section 3. The bias of the missing class is fitted on one half of the test set and scored on the
other, both ways round; they fitted it on the rows that they scored.

$ python recipes/omitted_class.py
"""

import torch
from digits_students import OUTPUTS, SPLITS, TEST_TO_TRAIN, fresh, kernel_ensemble, resplit, train
from torch import Tensor

from lightning_compress.distillation import Distillation, TransferSet, fit_class_bias
from lightning_compress.report.arms import run_arms

OMITTED, HIDDEN = 3, 128
ARMS = ("labels alone", "labels, mixup", "pseudo-labels, mixup", "distillation", "distillation, mixup")


def corrected(logits: Tensor, labels: Tensor, seed: int) -> tuple[int, float, int]:
    """Errors and recall of the omitted class after the bias fitted on the other half, and errors before."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    halves = order.tensor_split(2)
    guesses = torch.empty_like(labels)
    for fitted, scored in (halves, halves[::-1]):
        bias = fit_class_bias(logits[fitted], labels[fitted], [OMITTED])
        guesses[scored] = (logits[scored] + bias).argmax(1)
    recall = (guesses[labels == OMITTED] == OMITTED).float().mean()
    return int((guesses != labels).sum()), 100 * recall.item(), int((logits.argmax(1) != labels).sum())


def run(arm: str, split: int) -> dict[str, float]:
    """One student on one split."""
    images, labels, test_images, test_labels = resplit(split)
    seen = labels != OMITTED
    callback = None
    if not arm.startswith("labels"):
        hard = arm.startswith("pseudo")
        transfer = TransferSet(images[seen], mixup=1.0 if "mixup" in arm else 0.0, seed=split)
        callback = Distillation(
            kernel_ensemble(images, labels, seed=split),
            pool="vote" if hard else "mean_probabilities",
            temperature=1.0 if hard else 4.0,
            alpha=1.0,
            transfer=transfer,
            fidelity=False,
        )
    student = fresh(HIDDEN, split, mixup=arm == "labels, mixup")
    train(student, images[seen], labels[seen], callback, seed=split)
    with torch.no_grad():
        errors, recall, before = corrected(student.eval()(test_images), test_labels, split)
    return {"errors": errors, "recall of 3": recall, "errors before": before}


if __name__ == "__main__":
    arms = {name: lambda split, name=name: run(name, split) for name in ARMS}
    comparison = run_arms(arms, range(SPLITS), OUTPUTS / "omitted_class", test_to_train=TEST_TO_TRAIN)
    print(comparison.table("errors", "labels, mixup", "recall of 3", "errors before"))
