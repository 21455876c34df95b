"""Did it help? The same experiment with and without, over the same splits and seeds."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from lightning_compress.errors import CompressionError, did_you_mean
from lightning_compress.report.intervals import Interval, corrected_interval

Figures = Mapping[str, float]
Arm = Callable[[int], Figures]
"""An experiment as a function of the number of its split, which also seeds it."""


@dataclass(frozen=True)
class Comparison:
    """Figures of several arms over the same splits.

    Attributes:
        figures: arm -> the figures of each split, in order.
        test_to_train: number of test samples divided by that of training samples.
    """

    figures: Mapping[str, Sequence[Figures]]
    test_to_train: float

    def values(self, arm: str, figure: str) -> list[float]:
        """One figure of one arm in each split.

        Raises:
            CompressionError: no such arm.
        """
        if arm not in self.figures:
            raise CompressionError(f"There is no arm {arm!r}. {did_you_mean(arm, self.figures)}")
        return [figures[figure] for figures in self.figures[arm]]

    def difference(self, arm: str, baseline: str, figure: str) -> Interval:
        """Paired differences of two arms, with the corrected interval."""
        pairs = zip(self.values(arm, figure), self.values(baseline, figure), strict=True)
        return corrected_interval([a - b for a, b in pairs], test_to_train=self.test_to_train)

    def table(self, figure: str, baseline: str, *others: str) -> str:
        """A Markdown table: mean and standard deviation of ``figure``, difference to the baseline, means of ``others``.

        >>> runs = {"plain": [{"acc": 1.0}, {"acc": 2.0}], "taught": [{"acc": 2.0}, {"acc": 4.0}]}
        >>> print(Comparison(runs, test_to_train=1.0).table("acc", "plain"))
        | arm | acc | against plain |
        |---|---|---|
        | plain | 1.50 ± 0.71 | |
        | taught | 3.00 ± 1.41 | +1.50 [-9.50, +12.50] |
        """
        heads = ["arm", figure, f"against {baseline}", *others]
        lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
        for arm in self.figures:
            values = self.values(arm, figure)
            spread = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
            change = "" if arm == baseline else f" {self.difference(arm, baseline, figure)}"
            more = "".join(f" {fmean(self.values(arm, other)):.2f} |" for other in others)
            lines.append(f"| {arm} | {fmean(values):.2f}{spread} |{change} |{more}")
        return "\n".join(lines)


def run_arms(arms: Mapping[str, Arm], splits: Sequence[int], folder: str | Path, *, test_to_train: float) -> Comparison:
    """Run every arm on every split; what an earlier call of the same folder has finished is read, not run again.

    Args:
        arms: by name.
        splits: numbers of the splits.
        folder: for one file of figures per run.
        test_to_train: number of test samples divided by that of training samples.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    figures: dict[str, list[Figures]] = {name: [] for name in arms}
    for split in splits:
        for name, arm in arms.items():
            path = folder / f"{name.replace(' ', '_').replace('/', '_')}-{split}.json"
            if not path.exists():
                part = path.with_suffix(".part")
                part.write_text(json.dumps(dict(arm(split))))
                os.replace(part, path)
            figures[name].append(json.loads(path.read_text()))
    return Comparison(figures, test_to_train)
