"""Run by test_two_processes.py: exits, widths and depth on two gloo processes; each writes down what it ends with."""

import sys
from pathlib import Path

import lightning as L
import torch
from dynamic.exiting import DeepUser
from dynamic.test_depth import DepthUser
from support import ddp_trainer, digits, loader, validation_loader

import lightning_compress as lc
from lightning_compress.dynamic import EarlyExits, SlimmableWidths, StochasticDepth, export_width, set_depth
from lightning_compress.plan import CHECKPOINT_KEY

POINTS = ("stages.0", "stages.1")
CASES = {
    "exits": lambda: (DeepUser(), [EarlyExits(POINTS, calibrate={"macs": 0.6}, self_distillation=0.5)]),
    "placed": lambda: (DeepUser(), [EarlyExits((0.2, 0.6), weights="learned")]),
    "frozen": lambda: (DeepUser(), [EarlyExits(POINTS, frozen=True, learning_rate=0.03)]),
    "exits-pruned": lambda: (DeepUser(), [EarlyExits(POINTS), lc.WeightPruning(0.5)]),
    "widths": lambda: (DeepUser(), [SlimmableWidths((0.25, 0.5))]),
    "recalibrated": lambda: (DeepUser(), [SlimmableWidths((0.5,), statistics="recalibrated", distillation=0.5)]),
    "quantized": lambda: (
        DeepUser(),
        [SlimmableWidths((0.5,)), lc.QuantizationAwareTraining(4, 8, scale="lsq")],
    ),
    "depth": lambda: (DepthUser(), [StochasticDepth(0.5)]),
}
RESUMED = ("exits", "widths", "depth")


def outcome(callback, module, images, folder):
    """What a rank must have alike, beside the weights; and the heads after the first epoch."""
    module.eval()
    with torch.no_grad():
        if isinstance(callback, EarlyExits):
            file = torch.load(folder.parent / folder.name.removesuffix("-resumed") / "epoch=0.ckpt")
            early = file[CHECKPOINT_KEY]["exits"]["EarlyExits"]["tensors"]
            return {"bank": module.network.early_exits.state_dict(), "early": early}
        if isinstance(callback, SlimmableWidths):
            return {"small": export_width(module, 0.5)(images)}
        return {"kept": set_depth(module, 2), "shallow": module(images)}


def run(case: str, folder: Path, resume_from: Path | None = None) -> None:
    L.seed_everything(1, verbose=False)
    module, callbacks = CASES[case]()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    runner = ddp_trainer(folder, *callbacks, max_epochs=3)
    runner.fit(module, loader(), validation_loader(), ckpt_path=resume_from)
    logged = {key: value for key, value in runner.callback_metrics.items() if key.startswith("compress/exit")}
    found = outcome(callbacks[0], module, digits()[0][:20], folder)
    state = {"state_dict": module.state_dict(), "before": before, "logged": logged, **found}
    torch.save(state, folder / f"rank{runner.global_rank}.pt")


def main(folder: Path) -> None:
    for case in CASES:
        run(case, folder / case)
    for case in RESUMED:
        run(case, folder / f"{case}-resumed", folder / case / "epoch=0.ckpt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
