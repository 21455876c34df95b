"""What the recipes on dynamic computation share: data, a staged network, fits, evaluation of exits."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import lightning as L
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import StratifiedShuffleSplit
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from lightning_compress.zoo import SmallResNet, Textures

OUTPUTS = Path("outputs/recipes")
torch.set_num_threads(1)
Data = tuple[Tensor, Tensor]


class Staged(nn.Module):
    """Five stages of 3x3 convolutions with BatchNorm; the second and the fourth halve the resolution."""

    def __init__(self, widths: Sequence[int] = (8, 16, 32, 32, 64), classes: int = 10) -> None:
        super().__init__()
        ends = [1, *widths]
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(a, b, 3, padding=1, stride=2 if number in (1, 3) else 1, bias=False),
                nn.BatchNorm2d(b),
                nn.ReLU(),
            )
            for number, (a, b) in enumerate(pairwise(ends))
        )
        self.fc = nn.Linear(widths[-1], classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes)."""
        for stage in self.stages:
            images = stage(images)
        logits: Tensor = self.fc(images.mean(dim=(2, 3)))
        return logits


class Task(L.LightningModule):
    """Cross-entropy; Adam with a cosine schedule. It knows nothing of exits or widths."""

    def __init__(self, network: nn.Module, *, lr: float = 3e-3, classes: int = 10) -> None:
        super().__init__()
        self.network, self.lr, self.classes = network, lr, classes

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.network(images)
        return logits

    def training_step(self, batch: Data, batch_idx: int) -> Tensor:
        """The loss of a batch."""
        return cross_entropy(self.network(batch[0]), batch[1])

    def validation_step(self, batch: Data, batch_idx: int) -> None:
        """Logs the accuracy."""
        self.log("val_acc", (self.network(batch[0]).argmax(dim=1) == batch[1]).float().mean())

    def configure_optimizers(self) -> object:
        """Adam, and the schedule to zero."""
        optimizer = torch.optim.Adam(self.parameters(), lr=self.lr)
        epochs = self.trainer.max_epochs or 1
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)]


def digits(split: int, *, noise: float = 0.0) -> tuple[Data, Data, Data]:
    """Training (1000), calibration (300) and test (497) pictures of one stratified split, with Gaussian noise."""
    pixels, classes = load_digits(return_X_y=True)
    train, rest = next(StratifiedShuffleSplit(1, train_size=1000, random_state=split).split(pixels, classes))
    held, test = next(StratifiedShuffleSplit(1, train_size=300, random_state=split).split(pixels[rest], classes[rest]))
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    images = images + noise * torch.randn(images.shape, generator=torch.Generator().manual_seed(split))
    labels = torch.tensor(classes)
    parts = (train, rest[held], rest[test])
    return tuple((images[part], labels[part]) for part in parts)  # type: ignore[return-value]


def textures(split: int) -> tuple[Data, Data, Data]:
    """Training, calibration and test patches of one split of the pictures' tiles."""
    data = Textures(seed=split)
    data.setup()
    return tuple(part.tensors for part in (data.train, data.validation, data.test))  # type: ignore[return-value]


def fit(
    module: L.LightningModule, train: Data, *callbacks: L.Callback, epochs: int, validation: Data | None = None
) -> None:
    """A quiet fit, shuffled, batches of 50."""
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    module.train()
    data = TensorDataset(*train)
    loader = DataLoader(data, 50, sampler=RandomSampler(data), drop_last=True)
    held = None if validation is None else DataLoader(TensorDataset(*validation), 500)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        L.Trainer(
            max_epochs=epochs,
            callbacks=list(callbacks),
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=1.0 if validation is not None else 0,
            check_val_every_n_epoch=epochs,
            num_sanity_val_steps=0,
        ).fit(module, loader, held)
    module.eval()


def accuracy(network: nn.Module, data: Data) -> float:
    """Share of right answers, in per cent."""
    with torch.no_grad():
        return 100 * float((network(data[0]).argmax(dim=1) == data[1]).double().mean())


def resnet(classes: int = 12) -> SmallResNet:
    """The network for textures."""
    return SmallResNet(num_classes=classes)
