"""Early exits on digits (clean and noisy) and texture patches: accuracy against mean multiply-accumulates.

$ python recipes/early_exit.py              # or some of them: digits, "noisy digits", textures
"""

import json
import sys
from collections.abc import Mapping
from statistics import fmean, stdev

import torch
from exit_networks import OUTPUTS, Data, Staged, Task, accuracy, digits, fit, resnet, textures

from lightning_compress.dynamic import EarlyExits, ExitInference, calibrate_exits

SEEDS = 10
TEXTURE_SEEDS = 3
STAGES = tuple(f"stages.{number}" for number in range(4))
RULES = {
    "max prob, drop <= 0": {"drop": 0.0, "confidence": "max_probability"},
    "entropy, drop <= 0": {"drop": 0.0, "confidence": "entropy"},
    "margin, drop <= 0": {"drop": 0.0, "confidence": "margin"},
    "margin, drop <= 1 point": {"drop": 0.01, "confidence": "margin"},
    "margin, 10 % of the MACs": {"macs": 0.10, "confidence": "margin"},
    "margin, 20 % of the MACs": {"macs": 0.20, "confidence": "margin"},
    "margin, 50 % of the MACs": {"macs": 0.50, "confidence": "margin"},
    "patience, drop <= 0": {"drop": 0.0, "confidence": "patience"},
}
ARMS = ("joint", "self-distilled", "frozen")


def data(task: str, seed: int) -> tuple[Data, Data, Data]:
    """Training, calibration and test part."""
    if task == "textures":
        return textures(seed)
    return digits(seed, noise=0.25 if task == "noisy digits" else 0.0)


def train(task: str, arm: str, seed: int, parts: tuple[Data, Data, Data]) -> Task:
    """One network with exits."""
    torch.manual_seed(seed)
    module = Task(resnet() if task == "textures" else Staged())
    exits = ("relu", "blocks.0", "blocks.1") if task == "textures" else STAGES
    epochs = 20
    if arm == "frozen":
        fit(module, parts[0], epochs=epochs)
    options = {"frozen": arm == "frozen", "self_distillation": 0.5 if arm == "self-distilled" else 0.0}
    fit(module, parts[0], EarlyExits(exits, pool=4, **options), epochs=epochs)
    return module


def run(task: str, arm: str, seed: int) -> dict[str, dict[str, float]]:
    """Every rule on one network: test accuracy, drop, share of the MACs; and the plain network trained alone."""
    parts = data(task, seed)
    module = train(task, arm, seed, parts)
    full = accuracy(module, parts[2])
    figures = {"no exits used": {"accuracy": full, "drop": 0.0, "macs": 100.0}}
    if arm == "joint":
        torch.manual_seed(seed)
        alone = Task(resnet() if task == "textures" else Staged())
        fit(alone, parts[0], epochs=20)
        figures["trained without exits"] = {"accuracy": accuracy(alone, parts[2]), "drop": 0.0, "macs": 100.0}
    for name, rule in RULES.items():
        calibrate_exits(module, [parts[1]], **rule)
        found = ExitInference(module, check=False).predict(parts[2][0])
        right = 100 * float((found.classes == parts[2][1]).double().mean())
        figures[name] = {"accuracy": right, "drop": full - right, "macs": 100 * found.relative_macs}
    return figures


def table(runs: list[Mapping[str, Mapping[str, float]]]) -> str:
    """Means and standard deviations over the seeds."""
    lines = ["| rule | accuracy | drop, points | MACs, % |", "|---|---|---|---|"]
    for rule in ("no exits used", *(["trained without exits"] if "trained without exits" in runs[0] else []), *RULES):
        cells = []
        for figure in ("accuracy", "drop", "macs"):
            values = [one[rule][figure] for one in runs]
            cells.append(f"{fmean(values):.2f} ± {stdev(values):.2f}")
        lines.append(f"| {rule} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """All runs; those that are finished are read."""
    OUTPUTS.mkdir(parents=True, exist_ok=True)
    path = OUTPUTS / "early_exit.jsonl"
    done = (
        {tuple(one["key"]): one["figures"] for one in map(json.loads, path.read_text().splitlines())}
        if path.exists()
        else {}
    )
    for task in sys.argv[1:] or ("digits", "noisy digits", "textures"):
        seeds = range(TEXTURE_SEEDS if task == "textures" else SEEDS)
        for arm in ARMS[: 1 if task == "textures" else None]:
            for seed in seeds:
                key = (task, arm, seed)
                if key not in done:
                    done[key] = run(*key)
                    with path.open("a") as file:
                        file.write(json.dumps({"key": key, "figures": done[key]}) + "\n")
            print(f"\n{task}, {arm}, {len(seeds)} seeds\n")
            print(table([done[task, arm, seed] for seed in seeds]), flush=True)


if __name__ == "__main__":
    main()
