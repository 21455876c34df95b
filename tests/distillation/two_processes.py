"""Run by test_two_processes.py: distillation on two gloo processes, each of which writes down what it ends with."""

import copy
import sys
from pathlib import Path

import lightning as L
import torch
from distillation.distilled import Manual
from lightning.pytorch.callbacks import Callback
from support import ConvNet, User, ddp_trainer, digits, loader, validation_loader
from torch.utils.data import DataLoader, TensorDataset

import lightning_compress as lc
from lightning_compress.distillation import Distillation, Indexed, Tap, TransferSet


def teacher():
    torch.manual_seed(7)
    return ConvNet()


def numbered():
    images, labels = digits()
    return DataLoader(Indexed(TensorDataset(images[:400], labels[:400])), 40, shuffle=True)


CASES = {
    "plain": lambda folder: (User(), loader(), [Distillation(teacher())]),
    "manual": lambda folder: (Manual(), loader(), [Distillation(teacher())]),
    "taps": lambda folder: (
        User(),
        loader(),
        [Distillation(teacher(), taps=[Tap("network.0", "stem")]), lc.NeuronPruning(0.4), lc.WeightPruning(0.5)],
    ),
    "transfer": lambda folder: (
        User(),
        loader(),
        [Distillation(teacher(), transfer=TransferSet(digits()[0][:300], 16))],
    ),
    "validation": lambda folder: (
        User(),
        loader(),
        [Distillation([teacher(), ConvNet()], weights="validation", pool="mean_probabilities")],
    ),
    "cache": lambda folder: (User(), numbered(), [Distillation(teacher(), cache=folder / "outputs")]),
}


class WriteDown(Callback):
    """At the end, in each process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer, pl_module):
        callback = next(one for one in trainer.callbacks if isinstance(one, Distillation))
        state = {
            "state_dict": pl_module.state_dict(),
            "weights": callback.bank.weights,
            "adapters": copy.deepcopy(callback.state_dict()["adapters"]),
            "agreement": trainer.callback_metrics["compress/agreement"],
            "loss": trainer.callback_metrics["compress/distillation_loss"],
        }
        torch.save(state, self.folder / f"rank{trainer.global_rank}.pt")


def run(case: str, folder: Path, resume_from: Path | None = None) -> None:
    L.seed_everything(1, verbose=False)
    module, train, callbacks = CASES[case](folder.parent)
    runner = ddp_trainer(folder, *callbacks, WriteDown(folder), max_epochs=4)
    runner.fit(module, train, validation_loader(), ckpt_path=resume_from)


def main(folder: Path) -> None:
    for case in CASES:
        run(case, folder / case)
    run("taps", folder / "taps-resumed", folder / "taps" / "epoch=1.ckpt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
