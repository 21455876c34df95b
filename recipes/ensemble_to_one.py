"""An ensemble of five networks into one small one, beside every control; on digits or on textures.

$ python recipes/ensemble_to_one.py
$ python recipes/ensemble_to_one.py textures
"""

import sys
from functools import cache

import torch
from digits_students import OUTPUTS, TEST_TO_TRAIN, Student, ensemble_score, fresh, resplit, score, train
from fits import quiet
from torch import Tensor, nn

from lightning_compress.distillation import leave_one_out
from lightning_compress.report.arms import run_arms
from lightning_compress.report.controls import distillation_arms
from lightning_compress.zoo import SmallResNet, Textures

MEMBERS = 5
ARMS = ("one member", "ensemble", "no teacher", "label smoothing", "pseudo-labels", "distillation", "from one member")
SETTINGS = {
    "digits": {"splits": 10, "steps": 600, "classes": 10, "ratio": TEST_TO_TRAIN},
    "textures": {"splits": 6, "steps": 200, "classes": 12, "ratio": 0.2 / 0.6},
}


@cache
def data(name: str, split: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training inputs and classes, test inputs and classes."""
    if name == "digits":
        return resplit(split)
    textures = Textures(seed=split, patches=150)
    textures.setup()
    return *textures.train.tensors, *textures.test.tensors


def build(name: str, seed: int, *, small: bool) -> Student:
    """A student, or a member of the ensemble, whose first weights depend on the seed alone."""
    module = fresh((16 if small else 128) if name == "digits" else 1, seed)
    if name == "textures":
        module.network = SmallResNet((4, 8, 16) if small else (12, 24, 48), num_classes=12)
    return module


@cache
def ensemble(name: str, split: int) -> list[nn.Module]:
    """Networks of the same kind from other first weights and orders of the data."""
    images, labels, *_ = data(name, split)
    members = []
    for member in range(MEMBERS):
        module = build(name, 1000 * (member + 1) + split, small=False)
        train(module, images, labels, None, seed=1000 * (member + 1) + split, steps=SETTINGS[name]["steps"])
        members.append(module.network.eval())
    return members


def run(name: str, arm: str, split: int) -> dict[str, float]:
    """One arm on one split."""
    images, labels, test_images, test_labels = data(name, split)
    if arm in ("one member", "ensemble"):
        members = ensemble(name, split)[: MEMBERS if arm == "ensemble" else 1]
        return ensemble_score(members, test_images, test_labels)
    callback = None
    if arm != "no teacher":
        teachers = [] if arm == "label smoothing" else ensemble(name, split)
        teachers = teachers[:1] if arm == "from one member" else teachers or nn.Identity()
        options = {"alpha": 0.9, "temperature": 4.0, "pool": "mean_probabilities", "fidelity": False}
        arms = distillation_arms(teachers, SETTINGS[name]["classes"], **options)
        callback = arms["distillation" if arm == "from one member" else arm]()
    student = build(name, split, small=True)
    train(student, images, labels, callback, seed=split, steps=SETTINGS[name]["steps"])
    return score(student, test_images, test_labels)


def members_worth(name: str) -> str:
    """What each member of the first split's ensemble is worth on its test set."""
    *_, images, labels = data(name, 0)
    with torch.no_grad():
        logits = torch.stack([member(images) for member in ensemble(name, 0)])
    rows = leave_one_out(logits, labels, [str(member) for member in range(MEMBERS)])
    lines = [f"| {row.without or 'nobody'} | {100 * row.accuracy:.2f} | {row.nll:.4f} |" for row in rows]
    return "\n".join(["| without member | accuracy | NLL |", "|---|---|---|", *lines])


if __name__ == "__main__":
    chosen = sys.argv[1] if len(sys.argv) > 1 else "digits"
    quiet()
    setting = SETTINGS[chosen]
    arms = {arm: lambda split, arm=arm: run(chosen, arm, split) for arm in ARMS}
    folder = OUTPUTS / f"ensemble_to_one_{chosen}"
    comparison = run_arms(arms, range(setting["splits"]), folder, test_to_train=setting["ratio"])
    print(comparison.table("accuracy", "no teacher", "ECE"), "", members_worth(chosen), sep="\n")
