"""What the distillation recipes share: resplits of the digits, a strong teacher, a small student, a short fit."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import product
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import lightning as L
import torch
from fits import quiet
from lightning.pytorch.callbacks import Callback
from sklearn.datasets import load_digits
from sklearn.model_selection import StratifiedShuffleSplit, train_test_split
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from lightning_compress.distillation import expected_calibration_error

TRAIN, TEST, SPLITS = 898, 899, 10
TEST_TO_TRAIN = TEST / TRAIN
OUTPUTS = Path("outputs/recipes")
GAMMAS, RIDGES = (0.1, 0.2, 0.3, 0.5), (0.01, 0.1, 1.0, 3.0, 10.0)
SCALES = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)
torch.set_num_threads(1)


def resplit(split: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training pictures and classes, test pictures and classes of a stratified resplit; every ten have a seed."""
    pixels, classes = load_digits(return_X_y=True)
    splitter = StratifiedShuffleSplit(SPLITS, train_size=TRAIN, test_size=TEST, random_state=split // SPLITS)
    train, test = list(splitter.split(pixels, classes))[split % SPLITS]
    images, labels = torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(classes)
    return images[train], labels[train], images[test], labels[test]


class KernelMachine(nn.Module):
    """Kernel ridge regression on one-hot classes with a Gaussian kernel; its scores times a scale are logits."""

    def __init__(self, images: Tensor, labels: Tensor, *, gamma: float, ridge: float) -> None:
        super().__init__()
        self.gamma = gamma
        self.register_buffer("images", images)
        targets = nn.functional.one_hot(labels, 10).double()
        kernel = self._kernel(images.double(), images.double())
        weights = torch.linalg.solve(kernel + ridge * torch.eye(len(images), dtype=torch.float64), targets)
        self.register_buffer("weights", weights.float())
        self.register_buffer("scale", torch.ones(()))

    def _kernel(self, one: Tensor, two: Tensor) -> Tensor:
        return torch.exp(-self.gamma * torch.cdist(one, two).square())

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, 10)."""
        return self.scale * (self._kernel(images, self.images) @ self.weights)


def kernel_ensemble(images: Tensor, labels: Tensor, *, seed: int, members: int = 4) -> list[nn.Module]:
    """Kernel machines on bootstrap samples; width, ridge and scale make held-out training rows most probable."""
    kept, held = train_test_split(torch.arange(len(images)).numpy(), test_size=0.2, random_state=seed)
    found = []
    for gamma, ridge in product(GAMMAS, RIDGES):
        scores = KernelMachine(images[kept], labels[kept], gamma=gamma, ridge=ridge)(images[held])
        found += [(float(cross_entropy(scale * scores, labels[held])), gamma, ridge, scale) for scale in SCALES]
    _, gamma, ridge, scale = min(found)
    generator = torch.Generator().manual_seed(seed)
    machines = []
    for _ in range(members):
        chosen = torch.randint(len(images), (len(images),), generator=generator)
        machine = KernelMachine(images[chosen], labels[chosen], gamma=gamma, ridge=ridge)
        machine.scale.fill_(scale)
        machines.append(machine)
    return machines


class Student(L.LightningModule):
    """A multilayer perceptron with one hidden layer, trained with Adam and a cosine schedule; knows no teacher."""

    def __init__(self, hidden: int, *, lr: float = 1e-2, weight_decay: float = 0.0, mixup: bool = False) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))
        self.lr, self.weight_decay, self.mixup = lr, weight_decay, mixup

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, 10)."""
        return self.network(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy, of mixed pictures and classes if so asked."""
        images, labels = batch
        if not self.mixup:
            return cross_entropy(self(images), labels)
        share, other = torch.rand(len(images), 1), torch.randperm(len(images))
        logits = self(share * images + (1 - share) * images[other])
        losses = [cross_entropy(logits, one, reduction="none") for one in (labels, labels[other])]
        return (share.flatten() * losses[0] + (1 - share.flatten()) * losses[1]).mean()

    def configure_optimizers(self) -> object:
        """Adam with a cosine schedule over the steps of the fit."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.trainer.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def train(
    student: L.LightningModule,
    images: Tensor,
    labels: Tensor,
    callback: Callback | None,
    *,
    seed: int,
    steps: int = 600,
    batch_size: int = 64,
) -> None:
    """A fit of ``steps`` batches, the same for every arm."""
    quiet()
    data = TensorDataset(images, labels)
    size = min(batch_size, len(data))
    generator = torch.Generator().manual_seed(seed)
    loader = DataLoader(data, size, sampler=RandomSampler(data, num_samples=steps * size, generator=generator))
    trainer = L.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[] if callback is None else [callback],
    )
    trainer.fit(student, loader)


def fresh(hidden: int, seed: int, **options: object) -> Student:
    """A student whose first weights depend on the seed alone."""
    L.seed_everything(seed, verbose=False)
    return Student(hidden, **options)


@torch.no_grad()
def score(network: nn.Module, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy and expected calibration error in per cent."""
    logits = network.eval()(images)
    right = (logits.argmax(1) == labels).float().mean()
    return {"accuracy": 100 * right.item(), "ECE": 100 * expected_calibration_error(logits.softmax(1), labels)}


@torch.no_grad()
def ensemble_score(members: Iterable[nn.Module], images: Tensor, labels: Tensor) -> dict[str, float]:
    """The same of the mean of the members' probabilities."""
    chances = torch.stack([member(images).softmax(1) for member in members]).mean(0)
    right = (chances.argmax(1) == labels).float().mean()
    return {"accuracy": 100 * right.item(), "ECE": 100 * expected_calibration_error(chances, labels)}
