"""One network at four widths against four networks trained alone; digits and texture patches.

$ python recipes/slimmable.py
"""

import json
from statistics import fmean

import torch
from exit_networks import OUTPUTS, Staged, Task, accuracy, digits, fit, resnet, textures

from lightning_compress import measure
from lightning_compress.dynamic import SlimmableWidths, export_width, make_slimmable
from lightning_compress.report.intervals import corrected_interval
from lightning_compress.surgery import TracingInput

WIDTHS = (0.25, 0.5, 0.75, 1.0)
SEEDS = {"digits": 4, "textures": 3}
TEST_TO_TRAIN = {"digits": 0.5, "textures": 1 / 3}
EPOCHS = {"digits": 30, "textures": 20}
DISTILLATION = {"digits": 1.0, "textures": 0.0}
"""A network that has seen little is a poor teacher of its widths: 860 steps on textures, 600 on far easier digits."""


def fresh(task: str) -> Task:
    """The whole network."""
    return Task(resnet() if task == "textures" else Staged((16, 32, 32, 64)))


def run(task: str, seed: int) -> dict[str, list[float]]:
    """Test accuracy at each width: switchable with either kind of statistics, and trained alone."""
    parts = textures(seed) if task == "textures" else digits(seed)
    figures: dict[str, list[float]] = {}
    for arm in ("separate", "recalibrated"):
        torch.manual_seed(seed)
        module = fresh(task)
        fit(
            module,
            parts[0],
            SlimmableWidths(WIDTHS, statistics=arm, distillation=DISTILLATION[task]),
            epochs=EPOCHS[task],
        )
        figures[arm] = [accuracy(export_width(module, width), parts[2]) for width in WIDTHS]
    figures["alone"], figures["MACs, %"], costs = [], [], []
    for width in WIDTHS:
        torch.manual_seed(seed)
        alone = fresh(task)
        if width < 1:
            make_slimmable(alone, TracingInput("", (parts[0][0][:8],), {}), WIDTHS)
            alone = export_width(alone, width)
        fit(alone, parts[0], epochs=EPOCHS[task])
        figures["alone"].append(accuracy(alone, parts[2]))
        costs.append(measure(alone.network, parts[0][0][:1]).macs)
    figures["MACs, %"] = [100 * cost / costs[-1] for cost in costs]
    return figures


def main() -> None:
    """All runs; those that are finished are read."""
    OUTPUTS.mkdir(parents=True, exist_ok=True)
    path = OUTPUTS / "slimmable.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    done = {tuple(one["key"]): one["figures"] for one in map(json.loads, lines)}
    for task, seeds in SEEDS.items():
        for seed in range(seeds):
            if (task, seed) not in done:
                done[task, seed] = run(task, seed)
                with path.open("a") as file:
                    file.write(json.dumps({"key": (task, seed), "figures": done[task, seed]}) + "\n")
        print(f"\n{task}, {seeds} seeds\n")
        print("| width | MACs, % | alone | slimmable | difference | recalibrated | difference |")
        print("|---|---|---|---|---|---|---|")
        for place, width in enumerate(WIDTHS):
            values = {name: [done[task, seed][name][place] for seed in range(seeds)] for name in done[task, 0]}
            cells = [f"{width:g}", f"{fmean(values['MACs, %']):.1f}", f"{fmean(values['alone']):.2f}"]
            for arm in ("separate", "recalibrated"):
                differences = [a - b for a, b in zip(values[arm], values["alone"], strict=True)]
                interval = corrected_interval(differences, test_to_train=TEST_TO_TRAIN[task])
                cells += [f"{fmean(values[arm]):.2f}", str(interval)]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
