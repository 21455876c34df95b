"""What the tests of the room share: users' modules as they come, trained teachers, and a fit with distillation."""

from functools import cache

import lightning as L
import torch
from support import User, digits, fit, mlp
from torch import nn
from torchmetrics.classification import MulticlassAccuracy

from lightning_compress.distillation import Distillation


@cache
def trained() -> User:
    """A convolutional network with BatchNorm and dropout that knows the digits."""
    L.seed_everything(7, verbose=False)
    module = User("conv")
    fit(module, max_epochs=6)
    return module.train()  # a user who forgot eval()


@cache
def trained_mlp() -> nn.Module:
    L.seed_everything(8, verbose=False)
    module = User()
    fit(module, max_epochs=4)
    return module.network


class Rich(L.LightningModule):
    """Hyper-parameters, torchmetrics, a schedule with a monitor, hooks of its own, a dictionary as output."""

    def __init__(self, hidden: int = 24, lr: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = mlp(hidden)
        self.accuracy = MulticlassAccuracy(10, average="micro")
        self.called = []

    def forward(self, images):
        return self.network(images)

    def training_step(self, batch, batch_idx):
        images, labels = batch
        loss = nn.functional.cross_entropy(self(images), labels)
        self.log("train_loss", loss)
        return {"loss": loss, "labels": labels}

    def on_train_epoch_start(self):
        self.called.append("epoch")

    def on_train_batch_end(self, outputs, batch, batch_idx):
        assert "labels" in outputs
        self.called.append("batch")

    def validation_step(self, batch, batch_idx):
        images, labels = batch
        self.accuracy(self(images), labels)
        self.log("val_acc", self.accuracy)

    def on_save_checkpoint(self, checkpoint):
        checkpoint["mine"] = self.hparams.hidden

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=self.hparams.lr, momentum=0.9)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", patience=1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": "val_acc"}}


class Bare(L.LightningModule):
    """A training step and nothing else, for outputs of any shape."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def training_step(self, batch, batch_idx):
        return self.network(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Manual(L.LightningModule):
    """Manual optimization with two optimizers."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.body, self.head = nn.Sequential(nn.Linear(64, 24), nn.ReLU()), nn.Linear(24, 10)

    def forward(self, images):
        return self.head(self.body(images))

    def training_step(self, batch, batch_idx):
        images, labels = batch
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(nn.functional.cross_entropy(self(images), labels))
        for optimizer in self.optimizers():
            optimizer.step()

    def validation_step(self, batch, batch_idx):
        images, labels = batch
        self.log("val_acc", (self(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self):
        body = torch.optim.SGD(self.body.parameters(), lr=0.1, momentum=0.9)
        return [body, torch.optim.AdamW(self.head.parameters(), lr=1e-2)]


def distil(module, teachers=None, *callbacks, max_epochs=2, fit_options=None, **options):
    """A fit with distillation; returns Trainer and callback."""
    callback = Distillation(trained() if teachers is None else teachers, **options)
    return fit(module, callback, *callbacks, max_epochs=max_epochs, **(fit_options or {})), callback


def accuracy(network: nn.Module) -> float:
    images, labels = digits()
    with torch.no_grad():
        return (network.eval()(images[1200:]).argmax(1) == labels[1200:]).float().mean().item()
