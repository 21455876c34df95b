"""The small networks of the zoo on 32x32 textures: from scratch, and as students of one ensemble; accuracy and cost.

$ python recipes/small_networks.py             # all fits; goes on where it stopped; table and small_networks.svg
$ python recipes/small_networks.py --latency   # measures the latencies, on a quiet machine, and prints the table again

A number is that of the splits, 3 without it.
"""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import fits
import lightning as L
import torch
from digits_students import OUTPUTS, ensemble_score
from lightning.pytorch.callbacks import Callback
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import DataLoader

import lightning_compress as lc
from lightning_compress.distillation import Indexed
from lightning_compress.measure import RUNTIMES, compare_latency, runner
from lightning_compress.report.arms import Comparison, run_arms
from lightning_compress.report.drawing import BLUE, FAINT, ORANGE, to_svg
from lightning_compress.surgery import recalibrate_batchnorm_
from lightning_compress.zoo import Classifier, Textures

FOLDER = OUTPUTS / "small_networks"
SPLITS, PATCHES, EPOCHS, BATCH, MEMBERS = 3, 150, 10, 32, 3
TEST_TO_TRAIN = 0.2 / 0.6
TEACHER = "small_resnet"
STUDENTS: dict[str, dict[str, Any]] = {
    "squeezenet1_1": {"width": 0.25, "image_size": 32},
    "mobilenet_v1": {"width": 0.25, "image_size": 64},
    "mobilenet_v2": {"width": 0.125, "image_size": 64},
    "mobilenet_v3_small": {"width": 0.25, "image_size": 64},
    "shufflenet_v1": {"width": 0.25, "image_size": 64, "groups": 3},
    "shufflenet_v2": {"width": 0.25, "image_size": 64},
    "xception": {"width": 0.0625, "image_size": 64},
    "resnet18": {"width": 0.125, "image_size": 64},
}
"""Widths, and strides as for larger pictures, so that a fit takes a quarter of a minute."""
LEARNING_RATES = {"squeezenet1_1": 2e-3}
LEARNING_RATE = 5e-3
CONTROLS = ("one member", "ensemble")
FORMS = {"scratch": BLUE, "taught": ORANGE}


@cache
def data(split: int) -> Textures:
    """1,080 patches to train on, 360 to choose by, 360 to report."""
    textures = Textures(seed=split, patches=PATCHES)
    textures.setup()
    return textures


def fresh(name: str, seed: int) -> Classifier:
    """A network whose first weights depend on the seed alone."""
    L.seed_everything(seed, verbose=False)
    options = {"in_channels": 1, **STUDENTS[name]} if name in STUDENTS else {"channels": (16, 32, 64)}
    lr = LEARNING_RATES.get(name, LEARNING_RATE)
    return Classifier(name, num_classes=Textures.num_classes, network_options=options, lr=lr)


def fit(module: Classifier, split: int, seed: int, *callbacks: Callback) -> nn.Module:
    """So many epochs; the seed alone decides on the order of the patches, with a teacher and without.

    Norms are recalibrated at the end: MobileNetV3's slow ones would not have caught up in so few steps.
    """
    part = Indexed(data(split).train) if callbacks else data(split).train
    batches = DataLoader(part, BATCH, shuffle=True, generator=torch.Generator().manual_seed(seed))
    fits.fit(module, batches, EPOCHS, *callbacks)
    recalibrate_batchnorm_(module.network, data(split).train.tensors[0].split(BATCH))
    return module.network.eval()


@cache
def ensemble(split: int) -> list[nn.Module]:
    """The teachers of a split: the same network from other first weights and orders of the data; trained once."""
    members = []
    for member in range(MEMBERS):
        path, seed = FOLDER / "teachers" / f"{split}-{member}.pt", 1000 * (member + 1) + split
        module = fresh(TEACHER, seed)
        if path.exists():
            module.network.load_state_dict(torch.load(path, weights_only=True))
        else:
            fit(module, split, seed)
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(module.network.state_dict(), path)
        members.append(module.network.eval())
    return members


def run(name: str, form: str, split: int) -> dict[str, float]:
    """One network on one split: accuracies in per cent, bytes on the disk."""
    teaching = []
    if form == "taught":
        answers = FOLDER / "answers" / str(split)
        options = {"alpha": 0.9, "temperature": 4.0, "pool": "mean_probabilities", "fidelity": False}
        teaching = [lc.Distillation(ensemble(split), cache=answers, **options)]
    network = fit(fresh(name, split), split, split, *teaching)
    return {**accuracies([network], split), "bytes": file_size(network)}


def control(arm: str, split: int) -> dict[str, float]:
    """One of the teachers, or all of them together."""
    members = ensemble(split)[: MEMBERS if arm == "ensemble" else 1]
    return {**accuracies(members, split), "bytes": sum(map(file_size, members))}


def accuracies(members: list[nn.Module], split: int) -> dict[str, float]:
    """Of the mean of the members' probabilities, on the part to report and on the part to choose by."""
    parts = {"accuracy": data(split).test.tensors, "validation": data(split).validation.tensors}
    return {name: ensemble_score(members, *tensors)["accuracy"] for name, tensors in parts.items()}


def file_size(network: nn.Module) -> int:
    """Bytes of the file that gives back every bit of the network."""
    with TemporaryDirectory() as folder:
        return lc.save_compressed(network, Path(folder, "model.lcz")).bytes


def measure_latency() -> None:
    """Milliseconds of one patch in each runtime, all networks interleaved; one thread."""
    picture: Tensor = torch.randn(1, *Textures.input_shape)
    networks = {name: fresh(name, 0).network for name in (TEACHER, *STUDENTS)}
    found = {}
    for runtime in RUNTIMES:
        calls = {name: runner(network, [picture], runtime) for name, network in networks.items()}
        found[runtime] = compare_latency(calls, rounds=100).as_dict()
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "latency.json").write_text(json.dumps(found))


def latencies() -> dict[str, list[str]]:
    """Network -> milliseconds in each runtime; dashes before they have been measured."""
    path = FOLDER / "latency.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    rows = [{row["name"]: row["milliseconds"]["median"] for row in found[one]["rows"]} for one in found]
    return {name: [f"{row[name]:.2f}" for row in rows] or ["-"] * len(RUNTIMES) for name in (TEACHER, *STUDENTS)}


def print_table(comparison: Comparison) -> None:
    """One line for each network, sorted by multiply-accumulates."""
    print(
        "| network | width | parameters | MACs | file, bytes | eager, ms | ONNX Runtime, ms | scratch | taught | gain |"
    )
    print("|---|" + "---:|" * 9)
    times = latencies()

    def mean(arm: str, figure: str = "accuracy") -> float:
        return fmean(comparison.values(arm, figure))

    for name in sorted(STUDENTS, key=lambda one: cost(one).macs):
        arms = f"{name} taught", f"{name} scratch"
        gain = comparison.difference(*arms, "accuracy") if len(comparison.figures[arms[0]]) > 1 else ""
        shown = [name, STUDENTS[name]["width"], f"{cost(name).parameters:,}", f"{cost(name).macs:,}"]
        shown += [f"{mean(f'{name} scratch', 'bytes'):,.0f}", *times[name]]
        shown += [*(f"{mean(f'{name} {form}'):.2f}" for form in FORMS), gain]
        print("| " + " | ".join(map(str, shown)) + " |")
    for arm, count in zip(CONTROLS, (1, MEMBERS), strict=True):
        parameters, macs = count * cost(TEACHER).parameters, count * cost(TEACHER).macs
        shown = [f"{arm} ({TEACHER})", 1, f"{parameters:,}", f"{macs:,}", f"{mean(arm, 'bytes'):,.0f}"]
        shown += [*(times[TEACHER] if count == 1 else ["", ""]), f"{mean(arm):.2f}", "", ""]
        print("| " + " | ".join(map(str, shown)) + " |")


@cache
def cost(name: str) -> lc.measure.Cost:
    """Of one patch."""
    return lc.measure(fresh(name, 0).network, torch.zeros(1, *Textures.input_shape))


def plot(comparison: Comparison, path: Path) -> None:
    """Accuracy against multiply-accumulates; a line joins what a network reaches alone and taught."""
    figure = Figure(figsize=(8.4, 4.6), layout="constrained")
    axes = figure.add_subplot()
    for name in STUDENTS:
        ends = [fmean(comparison.values(f"{name} {form}", "accuracy")) for form in FORMS]
        axes.plot([cost(name).macs] * 2, ends, color=FAINT, linewidth=1, zorder=1)
        for value, (form, color) in zip(ends, FORMS.items(), strict=True):
            axes.plot(cost(name).macs, value, "o", color=color, label=form if name == next(iter(STUDENTS)) else None)
        axes.annotate(name, (cost(name).macs, max(ends)), xytext=(0, 6), textcoords="offset points", ha="center")
    for arm, count in zip(CONTROLS, (1, MEMBERS), strict=True):
        place = count * cost(TEACHER).macs, fmean(comparison.values(arm, "accuracy"))
        axes.plot(*place, "D", color=FAINT)
        axes.annotate(f"{arm}, {TEACHER}", place, xytext=(0, 6), textcoords="offset points", ha="center")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.12, y=0.12)
    axes.set(xscale="log", xlabel="multiply-accumulates of one patch", ylabel="test accuracy, per cent")
    axes.legend(frameon=False, loc="lower right")
    path.write_text(to_svg(figure, "small_networks").replace("currentColor", "#1f2933"))


def main() -> None:
    """All arms on all splits; table and plot."""
    if "--latency" in sys.argv[1:]:
        measure_latency()
    arms = {arm: lambda split, arm=arm: control(arm, split) for arm in CONTROLS}
    for name in STUDENTS:
        for form in FORMS:
            arms[f"{name} {form}"] = lambda split, name=name, form=form: run(name, form, split)
    splits = next((int(word) for word in sys.argv[1:] if word.isdigit()), SPLITS)
    comparison = run_arms(arms, range(splits), FOLDER / "runs", test_to_train=TEST_TO_TRAIN)
    print_table(comparison)
    plot(comparison, FOLDER / "small_networks.svg")


if __name__ == "__main__":
    main()
