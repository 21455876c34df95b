"""From a large network to a very small one: directly, or by an assistant between them.

Mirzadeh et al., "Improved Knowledge Distillation via Teacher Assistant", AAAI 2020, arXiv:1902.03393.

$ python recipes/assistant.py
"""

from collections.abc import Sequence

from digits_students import OUTPUTS, SPLITS, TEST_TO_TRAIN, Student, fresh, resplit, score, train
from torch import Tensor

from lightning_compress.distillation import Distillation
from lightning_compress.report.arms import run_arms

LARGE, MIDDLE, SMALL = 256, 24, 6
CHAINS = {
    "large alone": (LARGE,),
    "no teacher": (SMALL,),
    "large to small": (LARGE, SMALL),
    "large to middle to small": (LARGE, MIDDLE, SMALL),
}


def distil_along(widths: Sequence[int], images: Tensor, labels: Tensor, split: int) -> Student:
    """Train networks of these widths, each but the first with the one before it as its teacher; return the last."""
    teacher = None
    for generation, width in enumerate(widths):
        options = {"temperature": 4.0, "alpha": 0.7, "fidelity": False}
        callback = None if teacher is None else Distillation(teacher, **options)
        student = fresh(width, split if generation == len(widths) - 1 else 100 * (generation + 1) + split)
        train(student, images, labels, callback, seed=split)
        teacher = student
    return student


def run(chain: str, split: int) -> dict[str, float]:
    """One chain on one split."""
    images, labels, test_images, test_labels = resplit(split)
    return score(distil_along(CHAINS[chain], images, labels, split), test_images, test_labels)


if __name__ == "__main__":
    arms = {name: lambda split, name=name: run(name, split) for name in CHAINS}
    comparison = run_arms(arms, range(SPLITS), OUTPUTS / "assistant", test_to_train=TEST_TO_TRAIN)
    print(comparison.table("accuracy", "no teacher", "ECE"))
    print("\nby the assistant - directly:",
          comparison.difference("large to middle to small", "large to small", "accuracy"))  # fmt: skip
