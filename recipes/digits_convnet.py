"""What the recipes of factored layers share: digits split by seed, a trained convolutional network, one clock."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from fits import fit
from torch import Tensor, nn

from lightning_compress.zoo import Classifier, Digits

OUTPUTS = Path(os.environ.get("RECIPE_OUTPUTS", "outputs/recipes"))
SEEDS, EPOCHS, RATE = 3, 20, 3e-3
SHARES = (0.55, 0.2, 0.25)
TEST_TO_TRAIN = 0.25 / 0.55
CALIBRATION, BATCH = 256, 64


def digits(seed: int) -> Digits:
    """988 pictures to train on, 359 to choose by, 450 to report."""
    data = Digits(batch_size=BATCH, seed=seed, shares=SHARES)
    data.setup()
    return data


def convnet() -> nn.Sequential:
    """Four 3x3 convolutions with BatchNorm and one Linear layer: 131,178 parameters."""
    layers: list[nn.Module] = []
    for place, (inputs, outputs) in enumerate([(1, 32), (32, 64), (64, 64), (64, 128)]):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if place == 1 else []
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


def train(network: nn.Module, data: Digits, epochs: int, rate: float) -> None:
    """AdamW, cosine, without noise."""
    fit(Classifier(network, lr=rate), data.train_dataloader(), epochs)


def dense(seed: int) -> nn.Sequential:
    """The trained network of this seed, trained once."""
    path, network = OUTPUTS / "digits_convnet" / f"dense-{seed}.pt", convnet()
    if not path.exists():
        L.seed_everything(seed, verbose=False)
        network = convnet()
        train(network, digits(seed), EPOCHS, RATE)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(network.state_dict(), path)
    network.load_state_dict(torch.load(path, weights_only=True))
    return network.eval()


def calibration(data: Digits) -> list[Tensor]:
    """256 training pictures, without their labels."""
    return list(data.train.tensors[0][:CALIBRATION].split(BATCH))


def timed(convert: Callable[[], Any]) -> float:
    """Seconds of CPU time, which other programs hardly disturb."""
    start = time.process_time()
    convert()
    return time.process_time() - start


def parameters(network: nn.Module) -> int:
    """How many."""
    return sum(parameter.numel() for parameter in network.parameters())


@torch.no_grad()
def accuracy(network: nn.Module, tensors: tuple[Tensor, ...]) -> float:
    """In per cent."""
    images, labels = tensors
    return 100 * float((network.eval()(images).argmax(1) == labels).float().mean())
