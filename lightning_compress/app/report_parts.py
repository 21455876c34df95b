"""What the report of a run says beyond its stages: answers before and after, sensitivity, the honest rival."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import lightning as L
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from lightning_compress.app.run_folder import RunFolder
from lightning_compress.app.stages import Stage, build_network
from lightning_compress.errors import CompressionError
from lightning_compress.pruning import sensitivity
from lightning_compress.report import Answers, Report, compare_answers, predict, read_rival

PROBE_BATCHES = 2


def check_report(config: DictConfig) -> None:
    """Refuse a rival that cannot be read, before an epoch is spent.

    Raises:
        CompressionError: no finished run lies there.
    """
    if config.report.rival is not None:
        read_rival(config.report.rival)


def complete(report: Report, config: DictConfig, stages: Sequence[Stage], folder: RunFolder) -> Report:
    """``report`` with what ``config.report`` asks for; what cannot be had is named in ``unknown``."""
    data: L.LightningDataModule = instantiate(config.data)
    data.prepare_data()
    data.setup("validate")
    first = folder.stage(stages[0].name).final
    unknown: list[str] = []
    answers, curves = None, {}
    if config.report.samples and len(stages) > 1:
        last = folder.stage(stages[-1].name).final
        try:
            answers = _answers(config, (stages[0], first), (stages[-1], last), data)
        except CompressionError as error:
            unknown.append(f"Which answers changed: {error}.")
    if config.report.sensitivity:
        try:
            batches = list(islice(data.val_dataloader(), PROBE_BATCHES))
            found = sensitivity(build_network(config, stages[0], first).eval(), batches)
            curves = {name: tuple(sorted(points.items())) for name, points in found.costs.items()}
        except (CompressionError, RuntimeError, TypeError, AttributeError) as error:
            unknown.append(f"What zeros cost in each layer: {error}.")
    rival = None if config.report.rival is None else read_rival(config.report.rival)
    return replace(report, answers=answers, sensitivity=curves, rival=rival, unknown=(*report.unknown, *unknown))


def _answers(
    config: DictConfig, first: tuple[Stage, Path], last: tuple[Stage, Path], data: L.LightningDataModule
) -> Answers:
    (before, classes), (after, _) = (
        predict(build_network(config, stage, path), data.val_dataloader(), config.report.samples)
        for stage, path in (first, last)
    )
    if len(before) != len(after) or not torch.equal(classes, _):
        raise CompressionError("the validation data come in another order each time")
    return compare_answers(before, after, classes)
