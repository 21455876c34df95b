"""Thresholds that promise: how often the promise is broken over 200 resplits, beside thresholds that are only fitted.

$ python recipes/guarantee.py
"""

from statistics import fmean

import torch
from early_exit import STAGES
from exit_networks import OUTPUTS, Staged, Task, digits, fit

from lightning_compress.dynamic import (
    EarlyExits,
    ExitRecord,
    collect,
    guaranteed_thresholds,
    search_for_drop,
)

RISK, DELTA, RESPLITS, CALIBRATION = 0.02, 0.1, 200, 400
NETWORKS = 3


def record_of(task: str, seed: int) -> ExitRecord:
    """What one network's exits say of all 797 pictures that it was not trained on; kept in a file."""
    path = OUTPUTS / "guarantee" / f"{task}-{seed}.pt"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        train, held, test = digits(1000 + seed, noise=0.25 if task == "noisy" else 0.0)
        torch.manual_seed(seed)
        module = Task(Staged())
        fit(module, train, EarlyExits(STAGES, pool=4, self_distillation=0.5), epochs=20)
        record = collect(module, [held, test])
        torch.save({"scores": record.scores, "correct": record.correct, "costs": record.costs}, path)
    return ExitRecord(**torch.load(path, weights_only=True))


def resplits(record: ExitRecord, seed: int) -> dict[str, tuple[list[float], list[float]]]:
    """Drop on the test part and share of the MACs, of each way to calibrate, in each resplit."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    for number in range(RESPLITS):
        order = torch.randperm(record.scores.shape[1], generator=torch.Generator().manual_seed(1000 * seed + number))
        held, test = record.part(order[:CALIBRATION]), record.part(order[CALIBRATION:])
        ways = {
            "fitted: drop <= 0 on the calibration set": search_for_drop(held, 0.0),
            "fitted: drop <= 2 points on the calibration set": search_for_drop(held, RISK),
            "promised: Learn-then-Test": guaranteed_thresholds(held, risk=RISK, delta=DELTA, seed=number).thresholds,
        }
        for name, thresholds in ways.items():
            outcome = test.evaluate(thresholds)
            drops, costs = found.setdefault(name, ([], []))
            drops.append(outcome.drop)
            costs.append(outcome.relative_cost)
    return found


def main() -> None:
    """The tables."""
    limit = DELTA + 2 * (DELTA * (1 - DELTA) / RESPLITS) ** 0.5
    print(
        f"promise: a drop of more than {100 * RISK:g} points in at most {DELTA:.0%}; allowed over resplits {limit:.1%}"
    )
    for task in ("clean", "noisy"):
        print(f"\n{task} digits\n\n| network | calibration | broken | mean drop, points | MACs, % |")
        print("|---|---|---|---|---|")
        for seed in range(NETWORKS):
            record = record_of(task, seed)
            for name, (drops, costs) in resplits(record, seed).items():
                broken = sum(drop > RISK + 1e-9 for drop in drops) / len(drops)
                print(
                    f"| {seed} | {name} | {broken:.1%} | {100 * fmean(drops):.2f} | {100 * fmean(costs):.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
