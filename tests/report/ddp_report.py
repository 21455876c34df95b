"""A fit on two processes with a report."""

import sys
from pathlib import Path

import lightning as L
import torch
from support import User, ddp_trainer, loader, validation_loader

import lightning_compress as lc
from lightning_compress.training import Schedule


def main(folder: Path) -> None:
    L.seed_everything(0, verbose=False)
    module, run = User("conv"), folder / "run"
    report = lc.CompressionReport(run / "report")
    neurons = lc.NeuronPruning(0.3, schedule=Schedule("one_shot", start=1), max_step=0.9)
    runner = ddp_trainer(run, neurons, report, max_epochs=3)
    runner.fit(module, loader(), validation_loader())
    kept = sum(int(parameter.count_nonzero()) for parameter in module.parameters())
    torch.save({"has_report": report.report is not None, "kept": kept}, run / f"rank{runner.global_rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
