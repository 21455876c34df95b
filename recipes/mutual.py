"""Deep mutual learning: two untrained networks teach each other while both learn from the labels.

Zhang et al., "Deep Mutual Learning", CVPR 2018, arXiv:1706.00384. There is no teacher to be frozen, so this is not a
matter of the callback: one LightningModule holds both, and its loss is made of the package's.

$ python recipes/mutual.py
"""

from collections.abc import Sequence
from functools import cache

import lightning as L
from digits_students import OUTPUTS, SPLITS, TEST_TO_TRAIN, Student, ensemble_score, fresh, resplit, score, train
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_compress.distillation.losses.kd import kd
from lightning_compress.report.arms import run_arms
from lightning_compress.report.controls import distillation_arms

HIDDEN = 32
CONTROLS = {
    "label smoothing": "label smoothing",
    "pseudo-labels of a finished twin": "pseudo-labels",
    "taught by a finished twin": "distillation",
}
ARMS = ("no teacher", *CONTROLS, "mutual")
PAIRS = ("both, mutual", "both, no teacher")


class Cohort(L.LightningModule):
    """Networks that learn from the labels and from what the others say at the same moment (T = 1).

    Args:
        students: of one kind, each with other first weights.
    """

    def __init__(self, students: Sequence[Student]) -> None:
        super().__init__()
        self.students = nn.ModuleList(students)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The sum of the students' losses; none gets gradients through another's answers."""
        images, labels = batch
        answers = [student(images) for student in self.students]
        total = sum(cross_entropy(answer, labels) for answer in answers)
        for number, answer in enumerate(answers):
            others = [other.detach() for place, other in enumerate(answers) if place != number]
            total = total + sum(kd(answer, other, 1.0) for other in others) / len(others)
        return total

    def configure_optimizers(self) -> object:
        """One AdamW for all, which treats each parameter by itself; the schedule of a student alone."""
        return Student.configure_optimizers(self)

    @property
    def lr(self) -> float:
        """Of a student alone."""
        return self.students[0].lr

    @property
    def weight_decay(self) -> float:
        """Of a student alone."""
        return self.students[0].weight_decay


@cache
def alone(start: int, split: int) -> Student:
    """A network that no other teaches."""
    images, labels, *_ = resplit(split)
    student = fresh(HIDDEN, 100 * start + split)
    train(student, images, labels, None, seed=split)
    return student


@cache
def together(split: int) -> list[Student]:
    """The same two, with the same first weights, as a cohort."""
    images, labels, *_ = resplit(split)
    other = fresh(HIDDEN, 100 + split)
    pair = Cohort([fresh(HIDDEN, split), other])
    train(pair, images, labels, None, seed=split)
    return list(pair.students)


def run(arm: str, split: int) -> dict[str, float]:
    """One arm on one split."""
    images, labels, *test = resplit(split)
    if arm in PAIRS:
        return ensemble_score(together(split) if "mutual" in arm else [alone(0, split), alone(1, split)], *test)
    if arm in ("no teacher", "mutual"):
        return score(alone(0, split) if arm == "no teacher" else together(split)[0], *test)
    build = distillation_arms(alone(1, split), 10, alpha=0.5, temperature=1.0, fidelity=False)[CONTROLS[arm]]
    student = fresh(HIDDEN, split)
    train(student, images, labels, build(), seed=split)
    return score(student, *test)


if __name__ == "__main__":
    arms = {name: lambda split, name=name: run(name, split) for name in (*ARMS, *PAIRS)}
    comparison = run_arms(arms, range(SPLITS), OUTPUTS / "mutual", test_to_train=TEST_TO_TRAIN)
    print(comparison.table("accuracy", "no teacher", "ECE"))
    print("\nboth, mutual - both alone:", comparison.difference(*PAIRS, "accuracy"))
