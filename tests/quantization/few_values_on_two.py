"""Run by test_few_values_on_two.py: fits on two gloo processes, each of which writes down what it ends with."""

import sys
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from support import User, ddp_trainer, loader, validation_loader

import lightning_compress as lc
from lightning_compress.quantization import BinaryConnect, TernaryWeights, WeightClustering

RATE = {"objective": "rate", "rate": 1e-4, "importance": "gradients", "refresh": 1}
CASES = {
    "clusters": lambda: [lc.WeightPruning(0.5), WeightClustering(8, init="random", start=1)],
    "rate": lambda: [WeightClustering(8, start=1, **RATE), lc.NeuronPruning(0.3)],
    "stochastic": lambda: [BinaryConnect("stochastic")],
    "ttq": lambda: [TernaryWeights("ttq")],
}


class WriteDown(Callback):
    """At the end, in each process; the processes' random states differ from the start."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_fit_start(self, trainer, pl_module):
        if trainer.ckpt_path is None:
            torch.manual_seed(100 + trainer.global_rank)

    def on_fit_end(self, trainer, pl_module):
        ours = [one for one in trainer.callbacks if isinstance(one, WeightClustering | TernaryWeights)]
        state = {"state_dict": pl_module.state_dict(), "ours": [one.get_compression_state() for one in ours]}
        torch.save({**state, "random": torch.get_rng_state()}, self.folder / f"rank{trainer.global_rank}.pt")


def run(case: str, folder: Path, resume_from: Path | None = None) -> None:
    L.seed_everything(1, verbose=False)
    epochs, data = (6, loader()) if case == "rate" else (3, loader(0, 240))  # importance takes twenty steps
    runner = ddp_trainer(folder, *CASES[case](), WriteDown(folder), max_epochs=epochs)
    runner.fit(User(), data, validation_loader(), ckpt_path=resume_from)


def main(folder: Path) -> None:
    for case in CASES:
        run(case, folder / case)
        run(case, folder / f"{case}-resumed", folder / case / "epoch=1.ckpt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
