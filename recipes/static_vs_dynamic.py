"""Exits, widths and depth on one curve, beside networks that are made smaller for good, at equal multiply-accumulates.

$ python recipes/static_vs_dynamic.py        # goes on where it stopped; table and static_vs_dynamic.svg
$ python recipes/static_vs_dynamic.py 1      # one split
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean, stdev

import torch
from exit_networks import OUTPUTS, Data, Task, accuracy, digits, fit
from torch import nn

import lightning_compress as lc
from lightning_compress.dynamic import (
    EarlyExits,
    ExitInference,
    SlimmableWidths,
    StochasticDepth,
    calibrate_exits,
    export_depth,
    export_width,
)
from lightning_compress.report import CostPoint, draw_cost_curves, to_svg
from lightning_compress.report.arms import Comparison, run_arms
from lightning_compress.surgery import TracingInput
from lightning_compress.training import Schedule
from lightning_compress.zoo.resnet import resnet18

SPLITS = 3
TEST_TO_TRAIN = 0.5
NOISE = 0.25
"""On clean digits an eighth of the network is as good as all of it."""
EPOCHS, WHOLE_EPOCHS = 30, 10
"""Of every arm in all; pruning spends the second number on the whole network, and half of the rest on recovering."""
DROPS = (0.0, 0.01, 0.02, 0.05)
EXITS = ("layer1.0", "layer1.1", "layer2.1", "layer3.1")
WIDTHS = (0.25, 0.5, 0.75, 1.0)
DEPTHS = (0, 1, 2, 3, 4, 5)
CUTS = (0.3, 0.5, 0.7, 0.9)
PICTURE = torch.zeros(1, 1, 8, 8)
WHOLE = "plain network"


def fresh(split: int, width: float = 0.125) -> Task:
    """A ResNet-18 for 8x8 pixels; five of its eight blocks can be passed by."""
    torch.manual_seed(split)
    return Task(resnet18(10, in_channels=1, width=width, image_size=8))


def macs(task: nn.Module) -> float:
    """Of one sample, in per cent of the plain network's."""
    return 100 * lc.measure(task, PICTURE).macs / lc.measure(fresh(0), PICTURE).macs


def plain(split: int) -> dict[str, float]:
    """The network by itself."""
    train, _, test = digits(split, noise=NOISE)
    task = fresh(split)
    fit(task, train, epochs=EPOCHS)
    return {"accuracy": accuracy(task, test), "macs": macs(task)}


def exits(split: int) -> dict[str, float]:
    """One network with exits; thresholds for each drop of accuracy on the calibration set."""
    train, held, test = digits(split, noise=NOISE)
    task = fresh(split)
    fit(task, train, EarlyExits(EXITS, self_distillation=0.5), epochs=EPOCHS)
    figures = {}
    for drop in DROPS:
        calibrate_exits(task, [held], drop=drop)
        found = ExitInference(task, check=False).predict(test[0])
        figures[f"accuracy {drop}"] = 100 * float((found.classes == test[1]).double().mean())
        figures[f"macs {drop}"] = 100 * found.relative_macs
    return figures


def widths(split: int) -> dict[str, float]:
    """One network at each width."""
    train, _, test = digits(split, noise=NOISE)
    task = fresh(split)
    fit(task, train, SlimmableWidths(WIDTHS), epochs=EPOCHS)
    return points({width: export_width(task, width) for width in WIDTHS}, test)


def depths(split: int) -> dict[str, float]:
    """One network with fewer of its blocks."""
    train, _, test = digits(split, noise=NOISE)
    task = fresh(split)
    fit(task, train, StochasticDepth(0.5, linear=False), epochs=EPOCHS)
    call = TracingInput("", (train[0][:8],), {})
    return points({depth: export_depth(task, depth, tracing=call) for depth in DEPTHS}, test)


def pruned(split: int) -> dict[str, float]:
    """A network for each share of multiply-accumulates that is cut out."""
    train, _, test = digits(split, noise=NOISE)
    small = {}
    for cut in CUTS:
        task = fresh(split)
        fit(task, train, epochs=WHOLE_EPOCHS)
        cutting = lc.NeuronPruning(cut, of="macs", schedule=Schedule("iterative", end=0.5), round_to=1)
        fit(task, train, cutting, epochs=EPOCHS - WHOLE_EPOCHS)
        small[cut] = task
    return points(small, test)


def alone(split: int) -> dict[str, float]:
    """A narrow network from scratch for each width."""
    train, _, test = digits(split, noise=NOISE)
    small = {width: fresh(split, 0.125 * width) for width in WIDTHS[:-1]}
    for task in small.values():
        fit(task, train, epochs=EPOCHS)
    return points(small, test)


def points(tasks: Mapping[float, nn.Module], test: Data) -> dict[str, float]:
    """Test accuracy and cost of each."""
    figures = {f"accuracy {key}": accuracy(task, test) for key, task in tasks.items()}
    return {**figures, **{f"macs {key}": macs(task) for key, task in tasks.items()}}


ARMS = {
    WHOLE: plain,
    "exits": exits,
    "widths": widths,
    "depth": depths,
    "neurons cut": pruned,
    "narrow from scratch": alone,
}


def curve(comparison: Comparison, arm: str) -> list[CostPoint]:
    """Means over the splits, with standard errors."""
    keys = [key.removeprefix("accuracy") for key in comparison.figures[arm][0] if key.startswith("accuracy")]
    found = []
    for key in keys:
        values = comparison.values(arm, f"accuracy{key}")
        error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
        found.append(CostPoint(fmean(comparison.values(arm, f"macs{key}")), fmean(values), error))
    return found


def main() -> None:
    """All arms on all splits; table and figure."""
    splits = int(sys.argv[1]) if len(sys.argv) > 1 else SPLITS
    comparison = run_arms(ARMS, range(splits), OUTPUTS / "static_vs_dynamic", test_to_train=TEST_TO_TRAIN)
    curves = {arm: curve(comparison, arm) for arm in ARMS}
    print("| way | MACs, % | test accuracy, % |\n|---|---:|---:|")
    for arm, found in curves.items():
        for point in sorted(found, key=lambda one: one.cost):
            print(f"| {arm} | {point.cost:.1f} | {point.accuracy:.2f} ± {point.error:.2f} |")
    (whole,) = curves.pop(WHOLE)
    text = to_svg(draw_cost_curves(curves, reference=whole), "static_vs_dynamic")
    (Path(__file__).parent / "static_vs_dynamic.svg").write_text(text.replace("currentColor", "#1f2933"))


if __name__ == "__main__":
    main()
