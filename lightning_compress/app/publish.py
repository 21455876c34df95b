"""What a finished run hands to W&B, behind the guard that no logger's failure passes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import WandbLogger
from matplotlib.figure import Figure
from omegaconf import DictConfig

from lightning_compress.app.loggers import GuardedLogger
from lightning_compress.app.run_folder import RunFolder
from lightning_compress.app.stages import Stage, build_network
from lightning_compress.artifact import save_compressed
from lightning_compress.report import ModelFiles, Report, send_report

BEST_FILE = "best.lcz"


def publish(
    logger: GuardedLogger,
    report: Report,
    figures: Mapping[str, Figure],
    config: DictConfig,
    stages: Sequence[Stage],
    folder: RunFolder,
) -> None:
    """Log the report, if the logger is one of W&B's.

    Args:
        logger: any.
        report: of the run.
        figures: of the report, by name.
        config: of the run.
        stages: of the run.
        folder: where the checkpoints of the last network and its file are.
    """

    def send(inner: Any) -> None:
        if isinstance(inner, WandbLogger):
            module = build_network(config, stages[-1], folder.stage(stages[-1].name).final)
            models = _models(report, config, stages, folder)
            send_report(inner, report, figures, module=module, models=models, others=_siblings(report, config, folder))

    logger.attempt(send)


def close(logger: GuardedLogger, *, exit_code: int = 0) -> None:
    """End the W&B run, so that another job of this process begins its own."""

    def end(inner: Any) -> None:
        if isinstance(inner, WandbLogger):
            inner.experiment.finish(exit_code=exit_code)

    logger.attempt(end)


def _models(report: Report, config: DictConfig, stages: Sequence[Stage], folder: RunFolder) -> list[ModelFiles]:
    """The best epoch on target and the last; one version where that is the same network, or only the last is left."""
    last = folder.stage(stages[-1].name)
    metadata: dict[str, Any] = {**report.after.cost, **report.after.metrics, "plan": list(report.plan)}
    paths = [last.final]
    if report.file is not None:
        metadata |= {"file_bytes": report.file.bytes, "file_ratio": report.file.ratio}
        paths.append(folder.path / report.file.name)
    best = max(last.path.glob("best_*.ckpt"), key=lambda path: path.stat().st_mtime, default=None)
    if best is None or _same_weights(best, last.final):
        return [ModelFiles(paths, ["best", "latest"], metadata)]
    files = [best]
    if report.file is not None:
        save_compressed(build_network(config, stages[-1], best), folder.path / BEST_FILE)
        files.append(folder.path / BEST_FILE)
    return [
        ModelFiles(files, ["best"], {"stage": stages[-1].name, "checkpoint": best.stem}),
        ModelFiles(paths, ["latest"], metadata),
    ]


def _same_weights(one: Path, other: Path) -> bool:
    first, second = (torch.load(path, map_location="cpu", weights_only=True)["state_dict"] for path in (one, other))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def _siblings(report: Report, config: DictConfig, folder: RunFolder) -> list[Report]:
    """Finished runs of the same sweep that differ from this one in their seed alone, and this one."""
    found = [report]
    if config.sweep is not None:
        for path in folder.path.parent.glob("*/report.json"):
            other = Report.from_json(path.read_text())
            if other.seed != report.seed and _without_seed(other) == _without_seed(report):
                found.append(other)
    return sorted(found, key=lambda one: one.seed or 0)


def _without_seed(report: Report) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(json.dumps({**report.config, "seed": None}))
    return config
