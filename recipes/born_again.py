"""Generations of equals: each network is taught by the one before it, which is no larger.

Furlanello et al., "Born Again Neural Networks", ICML 2018, arXiv:1805.04770.

$ python recipes/born_again.py
"""

from functools import cache

from digits_students import (
    OUTPUTS,
    SPLITS,
    TEST_TO_TRAIN,
    Student,
    ensemble_score,
    fresh,
    resplit,
    score,
    train,
)

from lightning_compress.report.arms import run_arms
from lightning_compress.report.controls import distillation_arms

HIDDEN = 32
GENERATIONS = {"no teacher": 0, "born again once": 1, "born again twice": 2, "born again three times": 3}
CONTROLS = ("label smoothing", "pseudo-labels")
ENSEMBLES = ("three generations", "three without a teacher")


@cache
def trained(arm: str, start: int, split: int) -> Student:
    """A network with the ``start``-th first weights; the teacher of its arms is the generation before ``start``."""
    images, labels, *_ = resplit(split)
    callback = None
    if arm != "no teacher":
        teacher = generation(start - 1, split)
        callback = distillation_arms(teacher, 10, alpha=0.7, temperature=4.0, fidelity=False)[arm]()
    student = fresh(HIDDEN, 100 * start + split)
    train(student, images, labels, callback, seed=split)
    return student


def generation(number: int, split: int) -> Student:
    """The first has no teacher."""
    return trained("distillation" if number else "no teacher", number, split)


def run(arm: str, split: int) -> dict[str, float]:
    """One arm on one split."""
    *_, images, labels = resplit(split)
    if arm in GENERATIONS:
        return score(generation(GENERATIONS[arm], split), images, labels)
    if arm in CONTROLS:
        return score(trained(arm, 1, split), images, labels)
    starts = range(3)
    taught = arm == "three generations"
    members = [generation(start, split) if taught else trained("no teacher", start, split) for start in starts]
    return ensemble_score(members, images, labels)


if __name__ == "__main__":
    arms = {name: lambda split, name=name: run(name, split) for name in (*GENERATIONS, *CONTROLS, *ENSEMBLES)}
    comparison = run_arms(arms, range(SPLITS), OUTPUTS / "born_again", test_to_train=TEST_TO_TRAIN)
    print(comparison.table("accuracy", "no teacher", "ECE"))
    print("\ngenerations - strangers:", comparison.difference(*ENSEMBLES, "accuracy"))
