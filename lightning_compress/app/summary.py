"""Mean and interval over the runs of a sweep: one seed says nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev

from scipy.stats import t

from lightning_compress.errors import CompressionError
from lightning_compress.report import Report

COSTS = {"nonzero_parameters": "parameters not zero", "macs": "MACs, dense", "dense_bytes": "bytes, dense"}


def summarize(folders: Sequence[str]) -> None:
    """Print a table over all finished runs below ``folders``, in Markdown.

    Raises:
        CompressionError: fewer than two finished runs.
    """
    paths = [path for folder in folders for path in sorted(Path(folder).rglob("report.json"))]
    print(summary_table([Report.from_json(path.read_text()) for path in paths]))


def summary_table(reports: Sequence[Report]) -> str:
    """Before, after, and their difference run by run, each as mean and 95 % interval (Student's t).

    The runs differ in their seed: the spread of the first column is the noise from seed to seed.

    Raises:
        CompressionError: fewer than two runs, or runs of different recipes.
    """
    if len(reports) < 2:
        raise CompressionError(
            f"{len(reports)} finished runs: an interval takes at least 2. Give the folder of a sweep."
        )
    recipes = sorted({report.recipe for report in reports})
    if len(recipes) > 1:
        raise CompressionError(f"The runs are of different recipes: {', '.join(recipes)}. Give one sweep at a time.")
    names = (reports[0].before.stage, reports[0].after.stage)
    heading = ("", *names, "difference, run by run", f"spread of {names[0]} (s.d.)")
    rows = [heading, ("---", *("---:",) * 4), *_metric_rows(reports), *_cost_rows(reports), *_file_rows(reports)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    seeds = ", ".join(str(seed) for seed in sorted(report.seed for report in reports if report.seed is not None))
    return f"{table}\n\n{len(reports)} runs of `{recipes[0]}`, seeds {seeds}; mean ± half a 95 % interval."


def _metric_rows(reports: Sequence[Report]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name in sorted(set.intersection(*({*r.before.metrics} & {*r.after.metrics} for r in reports))):
        before, after = [r.before.metrics[name] for r in reports], [r.after.metrics[name] for r in reports]
        change = [b - a for a, b in zip(before, after, strict=True)]
        rows.append((name, interval(before), interval(after), interval(change, sign="+"), f"{stdev(before):.4f}"))
    return rows


def _cost_rows(reports: Sequence[Report]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, label in COSTS.items():
        before, after = [r.before.cost[name] for r in reports], [r.after.cost[name] for r in reports]
        factors = [a / b for a, b in zip(before, after, strict=True)]
        low, high = f"{min(factors):.1f}x", f"{max(factors):.1f}x"
        change = "the same" if {*factors} == {1.0} else f"{low if low == high else f'{low} to {high}'} fewer"
        rows.append((label, f"{fmean(before):,.0f}", f"{fmean(after):,.0f}", change, ""))
    return rows


def _file_rows(reports: Sequence[Report]) -> list[tuple[str, ...]]:
    """Bytes on the disk; no row where a run wrote no file."""
    files = [report.file for report in reports if report.file is not None]
    if len(files) < len(reports):
        return []
    dense = fmean(report.before.cost["parameters"] * 4 for report in reports)
    ratios = [file.ratio for file in files]
    spread = f"{fmean(ratios):.1f}x smaller ({min(ratios):.1f}x to {max(ratios):.1f}x)"
    return [("bytes of the file", f"{dense:,.0f} (fp32)", f"{fmean(file.bytes for file in files):,.0f}", spread, "")]


def interval(values: Sequence[float], sign: str = "") -> str:
    """Mean and half of the 95 % interval.

    >>> interval([0.97, 0.98, 0.99])
    '0.9800 ± 0.0248'
    """
    half = t.ppf(0.975, len(values) - 1) * stdev(values) / len(values) ** 0.5
    return f"{fmean(values):{sign}.4f} ± {half:.4f}"
