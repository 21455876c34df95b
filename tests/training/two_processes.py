"""Run by test_two_processes.py: a fit on two gloo processes, each of which writes down what it ends with."""

import sys
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from support import User, ddp_trainer, loader, validation_loader

import lightning_compress as lc

RECOVER = {"monitor": "val_acc", "tolerance": 0.5, "patience": 1}
CASES = {
    "weights": lambda: [lc.WeightPruning(0.8, criterion="random")],
    "neurons": lambda: [lc.NeuronPruning(0.5, criterion="random")],
    "apoz": lambda: [lc.NeuronPruning(0.5, criterion="apoz", of="params")],
    "both-gated": lambda: [
        lc.WeightPruning(0.6, criterion="random", recover=RECOVER),
        lc.NeuronPruning(0.3, criterion="random", recover=RECOVER),
    ],
}


class WriteDown(Callback):
    """At the end, in each process: parameters, masks, Plan, and how far the ranks' random states are apart."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.at_last_cut = None

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.current_epoch == trainer.max_epochs - 2 and batch_idx == 0:
            self.at_last_cut = [parameter.detach().clone() for parameter in pl_module.parameters()]

    def on_train_end(self, trainer, pl_module):
        moved = [not torch.equal(a, b) for a, b in zip(self.at_last_cut, pl_module.parameters(), strict=True)]
        state = {
            "state_dict": pl_module.state_dict(),
            "plan": lc.Plan.of(pl_module).to_state(),
            "reached": [callback.reached for callback in trainer.callbacks if hasattr(callback, "reached")],
            "masks": [callback.masks.to_state() for callback in trainer.callbacks if hasattr(callback, "masks")],
            "moved": moved,
            "random": torch.get_rng_state(),
        }
        torch.save(state, self.folder / f"rank{trainer.global_rank}.pt")


class UnequalSeeds(Callback):
    """The processes' random states differ from the start."""

    def on_fit_start(self, trainer, pl_module):
        if trainer.ckpt_path is None:
            torch.manual_seed(100 + trainer.global_rank)


def run(case: str, folder: Path, resume_from: Path | None = None) -> None:
    L.seed_everything(1, verbose=False)
    runner = ddp_trainer(folder, *CASES[case](), WriteDown(folder), UnequalSeeds(), max_epochs=6)
    runner.fit(User(), loader(), validation_loader(), ckpt_path=resume_from)


def main(folder: Path) -> None:
    for case in CASES:
        run(case, folder / case)
    for case in ("weights", "neurons"):
        run(case, folder / f"{case}-resumed", folder / case / "epoch=2.ckpt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
