"""An ordinary user's LightningModule: it classifies, and knows nothing of compression."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics.classification import MulticlassAccuracy

from lightning_compress.errors import CompressionError, did_you_mean
from lightning_compress.zoo.catalog import build

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
}
SCHEDULES = ("constant", "cosine")


class Classifier(LightningModule):
    """Trains a network with cross-entropy; logs ``train_loss``, ``val_loss``, ``val_acc`` and ``test_acc``.

    A network given by name is built from ``network_options`` and travels in the hyper-parameters, so that
    ``Classifier.load_from_checkpoint(path)`` needs nothing else. A network given as a module does not: pass it to
    ``load_from_checkpoint(path, network=...)`` again.

    Args:
        network: a name of :data:`lightning_compress.zoo.NETWORKS`, such as ``"lenet_300_100"`` or ``"mobilenet_v2"``,
            or any module from a batch to scores (N, num_classes).
        num_classes: number of classes.
        network_options: keyword arguments (primitives) of a network given by name, besides ``num_classes``.
        optimizer: ``"adamw"``, ``"adam"``, ``"rmsprop"`` or ``"sgd"`` (with Nesterov momentum 0.9).
        lr: learning rate at the start.
        weight_decay: as the optimizer understands it.
        schedule: ``"cosine"`` (to zero over the Trainer's ``max_epochs``; without them constant) or ``"constant"``.

    Raises:
        CompressionError: an unknown network, optimizer or schedule.

    >>> Classifier("lenet_300_100")(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        network: str | nn.Module = "lenet_300_100",
        num_classes: int = 10,
        network_options: Mapping[str, Any] | None = None,
        optimizer: str = "adamw",
        lr: float = 2e-3,
        weight_decay: float = 1e-2,
        schedule: str = "cosine",
    ) -> None:
        super().__init__()
        _check_known("optimizer", optimizer, OPTIMIZERS)
        _check_known("schedule", schedule, SCHEDULES)
        network_options = dict(network_options or {})
        self.save_hyperparameters(ignore=() if isinstance(network, str) else ("network",))
        self.network = _build(network, num_classes, network_options)
        self.val_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.test_accuracy = MulticlassAccuracy(num_classes, average="micro")

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (N, num_classes) of a batch."""
        scores: Tensor = self.network(x)
        return scores

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The cross-entropy of one batch of pictures and classes."""
        pictures, classes = batch
        loss = cross_entropy(self(pictures), classes)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Logs the loss and the accuracy over the validation set."""
        pictures, classes = batch
        scores = self(pictures)
        self.val_accuracy(scores, classes)
        self.log("val_loss", cross_entropy(scores, classes), prog_bar=True)
        self.log("val_acc", self.val_accuracy, prog_bar=True)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Logs the accuracy over the test set."""
        pictures, classes = batch
        self.test_accuracy(self(pictures), classes)
        self.log("test_acc", self.test_accuracy)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer by name, with its schedule over the epochs of this fit."""
        options = self.hparams
        momentum = {"momentum": 0.9, "nesterov": True} if options["optimizer"] == "sgd" else {}
        build = OPTIMIZERS[options["optimizer"]]
        optimizer = build(self.parameters(), lr=options["lr"], weight_decay=options["weight_decay"], **momentum)
        epochs = self.trainer.max_epochs or -1
        if options["schedule"] == "constant" or epochs < 1:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)}


def _check_known(kind: str, name: str, known: Any) -> None:
    if name not in known:
        raise CompressionError(f"{kind}={name!r} is unknown. {did_you_mean(str(name), known)}")


def _build(network: str | nn.Module, num_classes: int, options: Mapping[str, Any]) -> nn.Module:
    if isinstance(network, nn.Module):
        if options:
            raise CompressionError(
                f"network_options={dict(options)} say how to build a network by name; "
                f"a {type(network).__name__} was given. Leave them out."
            )
        return network
    return build(network, num_classes=num_classes, **options)
