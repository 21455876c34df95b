"""A user's LightningModule that knows nothing of the package, real data in a moment, and a Trainer without noise."""

import logging
import os
import subprocess
import sys
import warnings
from functools import cache
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "nesterov": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=3e-3),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=3e-3, amsgrad=True),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, lr=1e-3, momentum=0.5, centered=True),
}


@cache
def digits() -> tuple[Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)


def loader(start: int = 0, stop: int = 400, *, batch_size: int = 40, shuffle: bool = True, **kwargs) -> DataLoader:
    images, labels = digits()
    data = TensorDataset(images[start:stop], labels[start:stop])
    return DataLoader(data, batch_size=batch_size, shuffle=shuffle, **kwargs)


def validation_loader() -> DataLoader:
    return loader(1000, 1200, shuffle=False)


def mlp(hidden: int = 32) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(64, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(hidden, hidden // 2),
        nn.ReLU(),
        nn.Linear(hidden // 2, 10),
    )


class ConvNet(nn.Module):
    """Convolutions, BatchNorm, a residual add and a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.branch = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8 * 4 * 4, 10)
        self.dropout = nn.Dropout(0.2)

    def forward(self, images: Tensor) -> Tensor:
        features = torch.relu(self.norm(self.stem(images.view(-1, 1, 8, 8))))
        features = features + torch.relu(self.branch(features))
        pooled = nn.functional.max_pool2d(features, 2)
        return self.head(self.dropout(pooled.flatten(1)))


class User(L.LightningModule):
    """Somebody's module: hyper-parameters, a schedule, dropout, logged metrics."""

    def __init__(self, network: str = "mlp", optimizer: str = "adam", schedule: bool = True) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = {"mlp": mlp, "conv": ConvNet}[network]()

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return nn.functional.cross_entropy(self.network(images), labels)

    def validation_step(self, batch, batch_idx):
        images, labels = batch
        self.log("val_acc", (self(images).argmax(1) == labels).float().mean())

    def test_step(self, batch, batch_idx):
        images, labels = batch
        self.log("test_acc", (self(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self):
        optimizer = OPTIMIZERS[self.hparams.optimizer](self.parameters())
        if not self.hparams.schedule:
            return optimizer
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)]


def trainer(*callbacks, max_epochs: int = 3, **kwargs) -> L.Trainer:
    options = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
        "enable_checkpointing": any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
    }
    return L.Trainer(max_epochs=max_epochs, callbacks=list(callbacks), **{**options, **kwargs})


def fit(module, *callbacks, ckpt_path=None, train=None, validation=True, **kwargs) -> L.Trainer:
    """A fit on a few hundred digits, shuffled; returns the Trainer."""
    runner = trainer(*callbacks, **kwargs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runner.fit(
            module,
            loader() if train is None else train,
            validation_loader() if validation else None,
            ckpt_path=ckpt_path,
        )
    return runner


def every_epoch(folder, **kwargs) -> ModelCheckpoint:
    return ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1, **kwargs)


class Look(Callback):
    """Calls ``look`` in the middle of the fit, after the cuts of that batch."""

    def __init__(self, look, step: int = 25) -> None:
        self.look, self.step, self.seen = look, step, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            self.seen.append(self.look(trainer, pl_module))


def leftovers(module) -> tuple:
    """What hangs on a module besides what it was built with: attributes, hooks, followers."""
    from lightning_compress.plan import Record

    hooks = sum(len(value) for part in module.modules() for key, value in vars(part).items() if key.endswith("_hooks"))
    return set(vars(module)), hooks, list(Record.of(module).followers)


def on_two_processes(script: Path, folder: Path) -> dict:
    """Run ``script FOLDER`` in a process of its own, which fits with :func:`ddp_trainer`; what both ranks wrote down.

    All runs of a script are in one pair of processes, since starting them is what takes time.
    """
    here = Path(__file__).parent
    result = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")]),
        },
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    runs = [run for run in folder.iterdir() if (run / "rank0.pt").exists()]
    return {run.name: [torch.load(run / f"rank{rank}.pt", weights_only=True) for rank in range(2)] for run in runs}


def ddp_trainer(folder: Path, *callbacks, max_epochs: int) -> L.Trainer:
    """Of two gloo processes, with a checkpoint of every epoch in ``folder``."""
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    folder.mkdir(parents=True, exist_ok=True)
    return trainer(*callbacks, every_epoch(folder), max_epochs=max_epochs, devices=2, strategy="ddp")


def same(one, two) -> bool:
    """Bit equality of nested containers of tensors and primitives."""
    if isinstance(one, Tensor):
        return isinstance(two, Tensor) and one.dtype == two.dtype and torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(same(a, b) for a, b in zip(one, two, strict=True))
    return one == two
