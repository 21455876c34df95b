"""Which temperature? A sweep for a small student of all the labels and a strong teacher.

$ python recipes/temperature.py
"""

from digits_students import OUTPUTS, SPLITS, TEST_TO_TRAIN, fresh, kernel_ensemble, resplit, score, train

from lightning_compress.distillation import Distillation
from lightning_compress.report.arms import run_arms

HIDDEN = 16
TEMPERATURES = (1.0, 2.0, 4.0, 8.0, 20.0, 100.0)


def run(temperature: float | None, split: int) -> dict[str, float]:
    """One student on one split; None has no teacher."""
    images, labels, test_images, test_labels = resplit(split)
    callback = None
    if temperature is not None:
        teachers = kernel_ensemble(images, labels, seed=split)
        options = {"pool": "mean_probabilities", "alpha": 0.9, "fidelity": False}
        callback = Distillation(teachers, temperature=temperature, **options)
    student = fresh(HIDDEN, split)
    train(student, images, labels, callback, seed=split)
    return score(student, test_images, test_labels)


if __name__ == "__main__":
    arms = {f"T = {value:g}": lambda split, value=value: run(value, split) for value in TEMPERATURES}
    arms = {"no teacher": lambda split: run(None, split), **arms}
    comparison = run_arms(arms, range(SPLITS), OUTPUTS / "temperature", test_to_train=TEST_TO_TRAIN)
    print(comparison.table("accuracy", "no teacher", "ECE"))
