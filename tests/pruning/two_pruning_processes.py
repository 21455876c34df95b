"""Run by test_two_pruning_processes.py: fits on two gloo processes with criteria that look at data."""

import sys
from pathlib import Path

import lightning as L
import torch
from support import User, ddp_trainer, loader

import lightning_compress as lc

CASES = {
    "taylor": lambda: lc.WeightPruning(0.6, criterion="taylor"),
    "wanda": lambda: lc.WeightPruning(0.6, criterion="wanda"),
    "obs": lambda: lc.WeightPruning(0.6, criterion="obs"),
    "snip": lambda: lc.WeightPruning(0.6, criterion="snip", schedule="one_shot", max_step=0.6),
    "set": lambda: lc.WeightPruning(0.6, schedule="one_shot", max_step=0.6, regrow={"grow": "set", "every": 0.5}),
    "sensitivity": lambda: lc.WeightPruning(0.6, allocation="sensitivity"),
}

if __name__ == "__main__":
    for case, build in CASES.items():
        folder = Path(sys.argv[1]) / case
        L.seed_everything(1, verbose=False)
        pruning = build()
        runner = ddp_trainer(folder, pruning, max_epochs=2)
        runner.fit(User(), loader())
        parameters = {name: one.detach() for name, one in runner.lightning_module.named_parameters()}
        state = {"parameters": parameters, "masks": pruning.masks.to_state()}
        torch.save({**state, "reached": pruning.reached}, folder / f"rank{runner.global_rank}.pt")
