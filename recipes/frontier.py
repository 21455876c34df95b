"""Size against accuracy: a network pruned (neurons, then weights), shared and coded, next to small ones of equal size.

The rival is honest: a network that was small from the beginning, trained from scratch for as many epochs, its values
shared and coded by the same means.

$ python recipes/frontier.py digits lenet_300_100 10        # or: digits lenet_5 10, textures small_resnet 3

Each finished run is one file under outputs/recipes/frontier; the same command goes on where it stopped. The last
argument is the number of splits. The plot goes to frontier-DATA-NETWORK.svg, beside this file.
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import fits
import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from torch import nn

import lightning_compress as lc
from lightning_compress.report.arms import Comparison, run_arms
from lightning_compress.report.drawing import BLUE, FAINT, ORANGE, to_svg
from lightning_compress.zoo import Classifier, Digits, SmallResNet, Textures

OUTPUTS = Path(os.environ.get("RECIPE_OUTPUTS", "outputs/recipes")) / "frontier"
TEST_TO_TRAIN = 0.2 / 0.6
DENSE = "dense fp32"
EPOCHS = {"lenet_300_100": (30, 40, 60, 40), "lenet_5": (20, 30, 30, 30), "small_resnet": (16, 10, 10, 10)}
"""Dense, without neurons, without weights, with shared values; a small network takes the first three together."""

CUTS = {
    "lenet_300_100": ((0.0, 0.95), (0.75, 0.7), (0.85, 0.5), (0.9, 0.5), (0.93, 0.4)),
    "lenet_5": ((0.0, 0.94), (0.0, 0.965), (0.0, 0.975), (0.0, 0.985)),
    "small_resnet": ((0.0, 0.8), (0.3, 0.6), (0.5, 0.5), (0.6, 0.6)),
}
"""Shares of neurons and, of the weights that then are left, of weights."""

SHARING = {"lenet_300_100": (2e-3, 1e-3), "lenet_5": (5e-4, 1e-3), "small_resnet": (5e-4, 1e-4)}
CLUSTERS = {"lenet_300_100": 6, "lenet_5": 6, "small_resnet": 12}
"""Learning rate of the shared values, and the price of a bit: in squared weights, which BatchNorm makes small."""

WIDTHS: dict[str, tuple[tuple[int, ...], ...]] = {
    "lenet_300_100": ((60, 30), (40, 20), (28, 14), (20, 10)),
    "lenet_5": ((8, 16, 50), (6, 12, 30), (4, 8, 20)),
    "small_resnet": ((8, 16, 32), (6, 12, 24), (4, 8, 16)),
}


def small(name: str, widths: Sequence[int], classes: int) -> nn.Module:
    """The same kind of network, narrower."""
    if name == "small_resnet":
        return SmallResNet(channels=tuple(widths), num_classes=classes)
    if name == "lenet_300_100":
        sizes = (64, *widths)
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(sizes[-1], classes))
    first, second, hidden = widths
    convolutions: list[nn.Module] = [nn.Conv2d(1, first, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    convolutions += [nn.Conv2d(first, second, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(
        *convolutions, nn.Flatten(), nn.Linear(4 * second, hidden), nn.ReLU(), nn.Linear(hidden, classes)
    )


def fit(module: Classifier, data: Any, epochs: int, *callbacks: Callback) -> Classifier:
    """So many epochs, without noise."""
    fits.fit(module, data.train_dataloader(), epochs, *callbacks)
    return module


def shared(module: Classifier, data: Any, name: str) -> Classifier:
    """Values by rate and distortion, biases among them, taught by what they were; as the Deep Compression recipe."""
    teacher = lc.Distillation(copy.deepcopy(module.network), temperature=2.0, alpha=0.9, fidelity=False)
    epochs, (lr, rate) = EPOCHS[name][-1], SHARING[name]
    target = Classifier(module.network, weight_decay=0.0, lr=lr)
    clustering = lc.WeightClustering(
        CLUSTERS[name], objective="rate", first_rate=rate / 5, rate=rate, importance="gradients", refresh=1,
        precision="float16", start=0, targets=["*.weight", "*.bias"],
    )  # fmt: skip
    return fit(target, data, epochs, teacher, clustering)


def pruned(module: Classifier, data: Any, name: str, neurons: float, weights: float) -> Classifier:
    """Neurons first, then single weights of what is left."""
    _, second, third, _ = EPOCHS[name]
    if neurons:
        fit(module, data, second, lc.NeuronPruning(neurons, round_to=1))
    else:
        third += second
    return fit(module, data, third, lc.WeightPruning(weights, max_step=1.0))


def dense(name: str, data: Any, split: int) -> Classifier:
    """The network as all pruned ones begin; trained once a split."""
    path = OUTPUTS / "dense" / f"{name}-{split}.pt"
    L.seed_everything(split, verbose=False)
    module = Classifier(name, num_classes=data.num_classes)
    if path.exists():
        module.load_state_dict(torch.load(path, weights_only=True))
        return module
    fit(module, data, EPOCHS[name][0])
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(module.state_dict(), path)
    return module


def run(
    kind: str, name: str, split: int, *, cuts: Sequence[float] = (), widths: Sequence[int] = ()
) -> dict[str, float]:
    """One network on one split: accuracy on test and validation in per cent, bytes on the disk."""
    data = Digits(seed=split) if kind == "digits" else Textures(seed=split, patches=150)
    data.setup()
    *before, _ = EPOCHS[name]
    if widths:
        L.seed_everything(split, verbose=False)
        network = Classifier(small(name, widths, data.num_classes), num_classes=data.num_classes)
        module = shared(fit(network, data, sum(before)), data, name)
    else:
        module = dense(name, data, split)
        if cuts:
            L.seed_everything(split, verbose=False)
            module = shared(pruned(module, data, name, *cuts), data, name)
    with TemporaryDirectory() as folder:
        size = lc.save_compressed(module.network, Path(folder, "model.lcz")).bytes
    parameters = sum(parameter.numel() for parameter in module.parameters())
    return {
        "accuracy": accuracy(module, data.test),
        "validation": accuracy(module, data.validation),
        "bytes": size if cuts or widths else 4 * parameters,
    }


@torch.no_grad()
def accuracy(module: nn.Module, part: Any) -> float:
    """In per cent."""
    pictures, classes = part.tensors
    return 100 * float((module.eval()(pictures).argmax(1) == classes).float().mean())


def plot(comparison: Comparison, path: Path, title: str) -> None:
    """Ratio against the difference to the dense network; bands are 95 % intervals."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    full = fmean(comparison.values(DENSE, "bytes"))
    for family, text, color in (("pruned", "pruned", BLUE), ("small", "small from the beginning", ORANGE)):
        arms = [arm for arm in comparison.figures if arm.startswith(family)]
        ratios = [full / fmean(comparison.values(arm, "bytes")) for arm in arms]
        ends = [comparison.difference(arm, DENSE, "accuracy") for arm in arms]
        axes.fill_between(ratios, [end.low for end in ends], [end.high for end in ends], color=color, alpha=0.15, lw=0)
        axes.plot(ratios, [end.mean for end in ends], "o-", color=color, label=text)
    axes.axhline(0, color=FAINT, linewidth=0.8)
    axes.set(xscale="log", xlabel="times smaller than dense fp32, on the disk", ylabel="points of test accuracy")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0)))
    axes.xaxis.set_major_formatter("{x:g}x")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title)
    axes.legend(frameon=False, loc="lower left")
    path.write_text(to_svg(figure, "frontier").replace("currentColor", "#1f2933"))


def main(kind: str, name: str, splits: int) -> None:
    """All arms on all splits; table and plot."""
    arms = {DENSE: lambda split: run(kind, name, split)}
    for neurons, weights in CUTS[name]:
        text = f"pruned {100 * neurons:g} neurons {100 * weights:g} weights"
        arms[text] = lambda split, cuts=(neurons, weights): run(kind, name, split, cuts=cuts)
    for widths in WIDTHS[name]:
        arms["small " + "-".join(map(str, widths))] = lambda split, widths=widths: run(kind, name, split, widths=widths)
    comparison = run_arms(arms, range(splits), OUTPUTS / f"{kind}-{name}", test_to_train=TEST_TO_TRAIN)
    full = fmean(comparison.values(DENSE, "bytes"))
    print("| network | bytes | ratio | test accuracy | against dense | validation |\n|---|---:|---:|---:|---:|---:|")
    for arm in arms:
        size = fmean(comparison.values(arm, "bytes"))
        means = [fmean(comparison.values(arm, figure)) for figure in ("accuracy", "validation")]
        change = comparison.difference(arm, DENSE, "accuracy") if arm != DENSE and splits > 1 else ""
        print(f"| {arm} | {size:,.0f} | {full / size:.1f}x | {means[0]:.2f} | {change} | {means[1]:.2f} |")
    if splits > 1:
        plot(comparison, Path(__file__).parent / f"frontier-{kind}-{name}.svg", f"{name} on {kind}, {splits} splits")


if __name__ == "__main__":
    chosen = sys.argv[1:] or ["digits", "lenet_300_100", "10"]
    main(chosen[0], chosen[1], int(chosen[2]))
