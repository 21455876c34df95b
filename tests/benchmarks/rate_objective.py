"""Sizes of real files at equal accuracy: entropy-constrained quantization against k-means, both Huffman-coded.

    python tests/benchmarks/rate_objective.py [FOLDER] [SEEDS]

Three networks are trained and pruned; each pruned network is then fine-tuned once for every setting of both arms, from
the same weights, for the same number of epochs. The arms differ in the objective alone (with what belongs to it: a rate
that rises, weights that change their level), and both have their choice of two sparsities. What counts is the smallest
file of either arm that is, on validation data, within half a point of the first pruned network. Finished runs are read
from FOLDER. One seed takes a quarter of an hour on one core.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import fmean

os.environ.setdefault("OMP_NUM_THREADS", "1")

import lightning as L
import torch

import lightning_compress as lc
from lightning_compress.quantization import WeightClustering
from lightning_compress.zoo import Classifier, Digits, Textures

torch.set_num_threads(1)
TOLERANCE = 0.5  # points of validation accuracy
CLUSTERS = (2, 3, 4, 6, 8, 12, 16)
NETWORKS = {
    "lenet_300_100": {
        "data": Digits,
        "sparsities": (0.9, 0.95),
        "epochs": (40, 30),
        "lr": 2e-3,
        "rates": (4e-4, 8e-4, 1.6e-3, 3.2e-3, 4.5e-3, 6.4e-3),
    },
    "lenet_5": {
        "data": Digits,
        "sparsities": (0.9, 0.95),
        "epochs": (30, 20),
        "lr": 5e-4,
        "rates": (2e-4, 4e-4, 8e-4, 1.2e-3, 1.6e-3, 2.4e-3),
    },
    "small_resnet": {
        "data": partial(Textures, patches=150),
        "sparsities": (0.7, 0.85),
        "epochs": (16, 10),
        "lr": 5e-4,
        "rates": (2.5e-5, 5e-5, 1e-4, 2e-4, 4e-4),
    },
}
"""Rates are in squared weights, and what those are worth differs; the learning rate is that of the second fit."""


def trainer(epochs: int, *callbacks: L.Callback) -> L.Trainer:
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return L.Trainer(
        max_epochs=epochs, accelerator="cpu", enable_model_summary=False, callbacks=list(callbacks), **options
    )


def accuracy(module: L.LightningModule, dataset) -> float:
    images, labels = dataset.tensors
    with torch.no_grad():
        return 100 * float((module.eval()(images).argmax(1) == labels).float().mean())


def build(network: str, data, lr: float = 2e-3) -> Classifier:
    return Classifier(network, num_classes=data.num_classes, lr=lr)


def figures(module: Classifier, data) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.lcz")
        lc.save_compressed(module.network, path)
        size = os.path.getsize(path)
    return {"bytes": size, "val": accuracy(module, data.validation), "test": accuracy(module, data.test)}


def arms(rates: Sequence[float]) -> dict[str, WeightClustering]:
    common = {"start": 0, "precision": "float16", "learning_rate": 1e-3, "targets": ["*.weight", "*.bias"]}
    made = {f"k-means {k}": WeightClustering(k, **common) for k in CLUSTERS}
    for rate in rates:
        weighted = {"objective": "rate", "rate": rate, "first_rate": rate / 5, "importance": "gradients", "refresh": 1}
        made[f"rate {rate:g}"] = WeightClustering(32, **weighted, **common)
    return made


def run(network: str, sparsity: float, seed: int, folder: Path) -> dict[str, dict[str, float]]:
    """Figures of every arm on one pruned network."""
    path = folder / f"{network}-{sparsity}-{seed}.json"
    done = json.loads(path.read_text()) if path.exists() else {}
    setting = NETWORKS[network]
    wanted = arms(setting["rates"])
    if set(wanted) | {"pruned"} <= set(done):
        return done
    L.seed_everything(seed, verbose=False)
    data = setting["data"](seed=seed)
    data.setup()
    module = build(network, data)
    first, second = setting["epochs"]
    trainer(first, lc.WeightPruning(sparsity)).fit(module, data)
    done["pruned"] = figures(module, data)
    pruned = copy.deepcopy(module.state_dict())
    for name, callback in wanted.items():
        if name not in done:
            L.seed_everything(seed, verbose=False)
            module = build(network, data, setting["lr"])
            module.load_state_dict(pruned)
            keep = lc.WeightPruning(sparsity, schedule="one_shot", max_step=1.0)  # the zeros that are there
            trainer(second, keep, callback).fit(module, data)
            done[name] = figures(module, data)
            part = path.with_suffix(".part")
            part.write_text(json.dumps(done))
            os.replace(part, path)
    return done


def smallest(runs: list[dict[str, dict[str, float]]], arm: str, least: float) -> dict[str, float] | None:
    every = [(name, figures) for one in runs for name, figures in one.items()]
    fitting = [figures for name, figures in every if name.split()[0] == arm and figures["val"] >= least]
    return min(fitting, key=lambda one: one["bytes"], default=None)


def main(folder: Path, seeds: int) -> None:
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.ERROR)
    folder.mkdir(parents=True, exist_ok=True)
    print("| network | arm | bytes | saving | val acc | test acc |\n|---|---|---|---|---|---|")
    for network in NETWORKS:
        found: dict[str, list[dict[str, float]]] = {}
        for seed in range(seeds):
            runs = [run(network, sparsity, seed, folder) for sparsity in NETWORKS[network]["sparsities"]]
            least = runs[0]["pruned"]["val"] - TOLERANCE
            base = smallest(runs, "k-means", least)
            if base is not None:
                found.setdefault("k-means", []).append(base)
                other = smallest(runs, "rate", least) or base
                found.setdefault("rate", []).append({**other, "saving": 1 - other["bytes"] / base["bytes"]})
            else:
                print(f"{network}, seed {seed}: no k-means arm is within {TOLERANCE} points of the pruned network")
        for arm, rows in found.items():
            means = {key: fmean(row[key] for row in rows) for key in rows[0]}
            saving = f"{means['saving']:.1%}" if "saving" in means else ""
            print(f"| {network} | {arm} | {means['bytes']:.0f} | {saving} | {means['val']:.2f} | {means['test']:.2f} |")


if __name__ == "__main__":
    arguments = sys.argv[1:]
    main(Path(arguments[0] if arguments else "outputs/rate_objective"), int(arguments[1]) if len(arguments) > 1 else 3)
