"""What the recipes on digits share: a split by seed, LeNet-300-100, one fixed fit, its figures."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lightning_compress.zoo import Classifier, Digits

OUTPUTS = Path(os.environ.get("RECIPE_OUTPUTS", "outputs/recipes"))
TEST_TO_TRAIN = 360 / 1077
torch.set_num_threads(1)


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
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=list(callbacks),
    )
    trainer.fit(module, train_dataloaders=data.train_dataloader())


@torch.no_grad()
def accuracy(module: Classifier, tensors: tuple[Tensor, ...]) -> float:
    """In per cent."""
    images, labels = tensors
    return 100 * float((module.eval()(images).argmax(1) == labels).float().mean())


def figures(module: Classifier, data: Digits) -> dict[str, float]:
    """Accuracy on the test part, and on the part that settings are chosen by."""
    test, validation = accuracy(module, data.test.tensors), accuracy(module, data.validation.tensors)
    return {"accuracy": test, "validation": validation}
