"""In an existing project: a callback in a Trainer, our groups in a Hydra app of the usual shape, and LightningCLI."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch
from support import loader, mlp, validation_loader
from torch.nn.functional import cross_entropy

import lightning_compress as lc

ROOT = Path(lc.__file__).parents[1]


class Mine(L.LightningModule):
    """A module that knows nothing of compression."""

    def __init__(self, hidden: int = 32) -> None:
        super().__init__()
        self.network = mlp(hidden)

    def training_step(self, batch, batch_idx):
        return cross_entropy(self.network(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_acc", (self.network(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


class Data(L.LightningDataModule):
    def train_dataloader(self):
        return loader()

    def val_dataloader(self):
        return validation_loader()


QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


def test_callback_in_a_trainer():
    module = Mine()
    trainer = L.Trainer(max_epochs=2, accelerator="cpu", callbacks=[lc.NeuronPruning(0.5, max_step=0.5)], **QUIET)
    trainer.fit(module, datamodule=Data())
    assert module.network[0].out_features + module.network[4].out_features == 24


def test_lightning_cli_takes_the_callback_by_its_name(monkeypatch, tmp_path):
    cli = pytest.importorskip("lightning.pytorch.cli")
    pytest.importorskip("jsonargparse")
    monkeypatch.chdir(tmp_path)
    arguments = [
        "fit",
        "--trainer.callbacks+=lightning_compress.NeuronPruning",
        "--trainer.callbacks.amount=0.5",
        "--trainer.callbacks.max_step=0.5",
        "--trainer.callbacks+=lightning_compress.training.NaNGuard",
        "--trainer.max_epochs=2",
        "--trainer.accelerator=cpu",
        *(f"--trainer.{name}=false" for name in QUIET),
    ]
    run = cli.LightningCLI(Mine, Data, args=arguments, save_config_callback=None)
    names = [type(one).__name__ for one in run.trainer.callbacks]
    assert {"NeuronPruning", "NaNGuard"} <= {*names}
    assert run.model.network[0].out_features + run.model.network[4].out_features == 24


APP = """
import json

import hydra
from omegaconf import DictConfig


def instantiate_callbacks(config):
    # as lightning-hydra-template has it: whatever in the group has a _target_
    named = [one for one in config.values() if isinstance(one, DictConfig) and "_target_" in one]
    return [hydra.utils.instantiate(one) for one in named]


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(config):
    callbacks = instantiate_callbacks(config.callbacks)
    print(json.dumps([[type(one).__name__, getattr(one, "final", None)] for one in callbacks]))


main()
"""
TRAIN = "defaults: [_self_, {callbacks: default}]\nhydra: {run: {dir: out}, output_subdir: null}\n"
CALLBACKS = """
defaults:
  - /callbacks@neurons: neuron_pruning
  - /recovery@neurons.recover: default
  - /callbacks@guard: nan_guard
  - _self_
neurons:
  amount: 0.3
"""


def test_our_groups_in_an_app_of_the_usual_shape(tmp_path):
    (tmp_path / "configs" / "callbacks").mkdir(parents=True)
    (tmp_path / "configs" / "train.yaml").write_text(TRAIN)
    (tmp_path / "configs" / "callbacks" / "default.yaml").write_text(CALLBACKS)
    (tmp_path / "train.py").write_text(APP)
    plugins = tmp_path / "installed" / "hydra_plugins"  # where the wheel puts this file
    plugins.mkdir(parents=True)
    shutil.copy(ROOT / "lightning_compress" / "app" / "hydra_plugin.py", plugins / "lightning_compress.py")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(plugins.parent), str(ROOT)])}
    arguments = [sys.executable, "train.py", "callbacks.neurons.amount=0.4"]
    done = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [["NeuronPruning", 0.4], ["NaNGuard", None]]
