"""Run by test_fake_quantization_on_two.py: fits on two gloo processes, each of which writes down what it ends with."""

import sys
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from support import User, ddp_trainer, loader, validation_loader

import lightning_compress as lc
from lightning_compress.quantization import QuantizationAwareTraining

CASES = {
    "observed": lambda: [QuantizationAwareTraining(4, 4, freeze=2, freeze_batch_norm=2)],
    "lsq": lambda: [QuantizationAwareTraining(4, 4, scale="lsq"), lc.NeuronPruning(0.3)],
    "histogram": lambda: [QuantizationAwareTraining(3, 3, observer="mse", weight_observer="mse")],
}


class WriteDown(Callback):
    """At the end, in each process; the processes' random states differ from the start."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_fit_start(self, trainer, pl_module):
        if trainer.ckpt_path is None:
            torch.manual_seed(100 + trainer.global_rank)

    def on_fit_end(self, trainer, pl_module):
        ours = next(one for one in trainer.callbacks if isinstance(one, QuantizationAwareTraining))
        state = {"state_dict": pl_module.state_dict(), "quantizers": ours.quantizers, "scales": ours.state_dict()}
        torch.save({**state, "random": torch.get_rng_state()}, self.folder / f"rank{trainer.global_rank}.pt")


def run(case: str, folder: Path, resume_from: Path | None = None) -> None:
    L.seed_everything(1, verbose=False)
    runner = ddp_trainer(folder, *CASES[case](), WriteDown(folder), max_epochs=4)
    runner.fit(User("conv"), loader(0, 240), validation_loader(), ckpt_path=resume_from)


def main(folder: Path) -> None:
    for case in CASES:
        run(case, folder / case)
        for epoch in (0, 2):
            run(case, folder / f"{case}-from-{epoch}", folder / case / f"epoch={epoch}.ckpt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
