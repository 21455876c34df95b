"""What the recipes on digits share: a split by seed, LeNet-300-100, one fixed fit, its figures."""

from __future__ import annotations

import os
from pathlib import Path

import lightning as L
import torch
from fits import fit
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lightning_compress.zoo import Classifier, Digits

OUTPUTS = Path(os.environ.get("RECIPE_OUTPUTS", "outputs/recipes"))
TEST_TO_TRAIN = 360 / 1077


def digits(seed: int) -> Digits:
    """1,077 pictures to train on, 360 to choose by, 360 to report."""
    data = Digits(batch_size=32, seed=seed)
    data.setup()
    return data


def fresh(seed: int, lr: float) -> Classifier:
    """LeNet-300-100 whose first weights depend on the seed alone; AdamW, cosine."""
    L.seed_everything(seed, verbose=False)
    return Classifier("lenet_300_100", lr=lr)


def train(module: Classifier, data: Digits, epochs: int, *callbacks: Callback) -> None:
    """A fit of so many epochs, without noise."""
    fit(module, data.train_dataloader(), epochs, *callbacks)


@torch.no_grad()
def accuracy(module: Classifier, tensors: tuple[Tensor, ...]) -> float:
    """In per cent."""
    images, labels = tensors
    return 100 * float((module.eval()(images).argmax(1) == labels).float().mean())


def figures(module: Classifier, data: Digits) -> dict[str, float]:
    """Accuracy on the test part, and on the part that settings are chosen by."""
    test, validation = accuracy(module, data.test.tensors), accuracy(module, data.validation.tensors)
    return {"accuracy": test, "validation": validation}
