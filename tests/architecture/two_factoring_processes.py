"""Run by test_two_factoring_processes.py: layers replaced in mid-fit on two gloo processes."""

import sys
from pathlib import Path

import lightning as L
import torch
from support import User, ddp_trainer, loader

import lightning_compress as lc

CASES = {
    "low_rank": lambda: lc.LowRank(0.5, start=1, stages=2),
    "separable": lambda: lc.DepthwiseSeparable(start=1),
}

if __name__ == "__main__":
    for case, build in CASES.items():
        folder = Path(sys.argv[1]) / case
        L.seed_everything(1, verbose=False)
        factoring = build()
        runner = ddp_trainer(folder, factoring, max_epochs=3)
        runner.fit(User("conv"), loader())
        parameters = {name: one.detach() for name, one in runner.lightning_module.named_parameters()}
        torch.save({"parameters": parameters, "reached": factoring.reached}, folder / f"rank{runner.global_rank}.pt")
